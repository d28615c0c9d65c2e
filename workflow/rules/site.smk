"""All results as a folder of pages to open or to send.

Inputs: tables, figures, metrics, predictions, cards, audits, what is known of bases; no model. Outputs: `<results>/views/`
(what pages show of single records) and `<results>/report/`.
"""

from loratory.registry import has_views

VIEWED = [(domain, base) for domain, base in TRACKS if has_views(domain) and DOMAINS[domain].show_records]

REPORTED = [f"{corpus}/{domain}" for corpus, given in CORPORA.items() for domain in given]
SHOWN = [*TABLES, *METHOD_TABLES, *MIXER_TABLES, *SPLIT_TABLES]


rule show_records:
    input:
        predictions=f"<results>/predictions/data/{{domain}}/{{base}}/seed{SEEDS[0]}.parquet",
        baselines=lambda wc: baselines_of(wc.domain, wc.base),
        data="<results>/data/{domain}/test.parquet",
        metrics="<results>/metrics/data/{domain}/{base}.json",
        audio=lambda wc: audio_of("data", [wc.domain]),
        structure_folders=lambda wc: folders_of(structures_of(wc)),
        structures=structures_of,
        references=lambda wc: [f"<results>/data/{TRUTH}/test.parquet"] if TRUTH and structures_of(wc) else [],
    output:
        "<results>/views/{domain}/{base}.json",
    log:
        "<logs>/show_records/{domain}/{base}.log",
    benchmark:
        "<benchmarks>/show_records/{domain}/{base}.tsv"
    conda:
        "../../envs/data.yaml"
    resources:
        mem_mb=per_attempt(1000),
        runtime=per_attempt(10),
        attempt=per_attempt(1),
    params:
        task=lambda wc: plain(DOMAINS[wc.domain].task),
        seed=SEEDS[0],
        code=lambda wc: code_digest("reporting/views.py", *domain_modules("views", [wc.domain])),
    script:
        "../../scripts/show_records.py"


rule write_site:
    input:
        metrics=[f"<results>/metrics/data/{domain}/{base}.json" for domain, base in TRACKS],
        tables=[f"{table}.html" for table in SHOWN],
        values=[f"{table}.tsv" for table in SHOWN],
        figures=[*FIGURES, *METHOD_FIGURES, *MIXER_FIGURES],
        facts=[f"<results>/{dataset}/{name}" for dataset in REPORTED for name in ("card.json", "audit.json")],
        bases=collect("<results>/bases/{base}/base.json", base=STUDY.bases),
        views=[f"<results>/views/{domain}/{base}.json" for domain, base in VIEWED],
    output:
        directory("<results>/report"),
    log:
        "<logs>/write_site.log",
    benchmark:
        "<benchmarks>/write_site.tsv"
    conda:
        "../../envs/data.yaml"
    resources:
        mem_mb=per_attempt(500),
        runtime=per_attempt(10),
        attempt=per_attempt(1),
    params:
        title=STUDY.title,
        banner=BANNER,
        datasets=lambda wc, input: first_by_name(REPORTED, input.facts),
        bases=lambda wc, input: by_name(STUDY.bases, input.bases),
        views=lambda wc, input: list(zip(VIEWED, map(str, input.views))),
        study=plain(STUDY, without=["resources"]),
        targets={
            f"{name} on {base}": path.replace("<results>", RESULTS)
            for base in STUDY.bases
            for name, path in curves_on(base).items()
        },
        code=code_digest("reporting/site.py"),
    script:
        "../../scripts/write_site.py"
