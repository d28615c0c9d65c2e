"""All results as a folder of pages to open or to send.

Inputs: tables, figures, metrics, cards, audits, what is known of bases; no model. Output: `<results>/report/`.
"""

REPORTED = {
    f"{corpus}/{domain}": f"{RESULTS}/{corpus}/{domain}" for corpus, given in CORPORA.items() for domain in given
}


rule write_site:
    input:
        metrics=[f"<results>/metrics/data/{domain}/{base}.json" for domain, base in TRACKS],
        tables=[
            path
            for part in (rules.tables, rules.compare_methods, rules.compare_mixers, rules.compare_splits)
            for path in part.input
            if str(path).endswith(".html")
        ],
        figures=[
            path
            for part in (rules.figures, rules.compare_methods, rules.compare_mixers)
            for path in part.input
            if str(path).endswith(".svg")
        ],
        facts=[f"{folder}/{name}" for folder in REPORTED.values() for name in ("card.json", "audit.json")],
        bases=collect("<results>/bases/{base}/base.json", base=STUDY.bases),
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
        datasets=REPORTED,
        bases=lambda wc, input: by_name(STUDY.bases, input.bases),
        study=plain(STUDY, without=["resources"]),
        targets={
            f"{name} on {base}": path.replace("<results>", RESULTS)
            for base in STUDY.bases
            for name, path in curves_on(base).items()
        },
        code=code_digest("reporting/site.py"),
    script:
        "../../scripts/write_site.py"
