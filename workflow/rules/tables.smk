"""What people read.

Inputs: metrics, routing, learning curves; no model. Outputs: `<results>/tables/` as TSV, Markdown, LaTeX and HTML, and
`<results>/figures/`.
"""

STAGES = [f"<results>/tables/{stage}.stage" for stage in STUDY.lifecycle]
TABLES = [
    *(f"<results>/tables/{domain}.{base}" for domain, base in TRACKS),
    *(f"<results>/tables/{mixture}.summary" for mixture in STUDY.mixtures),
    *(f"<results>/tables/{base}.folding" for base in JUDGED),
    *STAGES,
    *(f"<results>/tables/{domain}.{base}.errors" for domain, base in TRANSCRIBED if DOMAINS[domain].show_records),
]
FIGURES = [
    *collect("<results>/figures/{mixture}.{figure}.svg", mixture=STUDY.mixtures, figure=("routing", "transfer")),
    *(f"<results>/figures/{base}.curves.svg" for base in STUDY.bases if curves_on(base)),
    *(f"<results>/figures/{base}.calibration.svg" for base in JUDGED),
    *(f"<results>/figures/{base}.ranks.svg" for base in STUDY.bases if ranked_on(base)),
]


rule tables:
    input:
        table_files(TABLES),
        [f"<results>/speed/{domain}.{base}.tsv" for domain, base in TRANSCRIBED],


rule figures:
    input:
        FIGURES,


rule tabulate_domain:
    input:
        metrics=lambda wc: metrics_of(wc.domain, wc.base),
        audits=lambda wc: collect(
            "<results>/{corpus}/{domain}/audit.json", corpus=corpora_of(wc.domain), domain=wc.domain
        ),
        base="<results>/bases/{base}/base.json",
    output:
        report(
            "<results>/tables/{domain}.{base}.html",
            caption="../report/domain_table.rst",
            category="Domains",
            subcategory="{domain}",
            labels={"base": "{base}", "kind": "table"},
        ),
        multiext("<results>/tables/{domain}.{base}", ".tsv", ".md", ".tex"),
    log:
        "<logs>/tabulate_domain/{domain}.{base}.log",
    benchmark:
        "<benchmarks>/tabulate_domain/{domain}.{base}.tsv"
    conda:
        "../../envs/data.yaml"
    resources:
        mem_mb=per_attempt(500),
        runtime=per_attempt(10),
        attempt=per_attempt(1),
    params:
        banner=BANNER,
        code=code_digest("reporting"),
    script:
        "../../scripts/tabulate_domain.py"


rule tabulate_errors:
    input:
        "<results>/metrics/errors/{domain}/{base}.json",
    output:
        report(
            "<results>/tables/{domain}.{base}.errors.html",
            caption="../report/errors.rst",
            category="Domains",
            subcategory="{domain}",
            labels={"base": "{base}", "kind": "worst words"},
        ),
        multiext("<results>/tables/{domain}.{base}.errors", ".tsv", ".md", ".tex"),
    log:
        "<logs>/tabulate_errors/{domain}.{base}.log",
    benchmark:
        "<benchmarks>/tabulate_errors/{domain}.{base}.tsv"
    conda:
        "../../envs/data.yaml"
    resources:
        mem_mb=per_attempt(500),
        runtime=per_attempt(10),
        attempt=per_attempt(1),
    params:
        banner=BANNER,
        code=code_digest("reporting/transcripts.py"),
    script:
        "../../scripts/tabulate_errors.py"


rule tabulate_speed:
    input:
        expand("<results>/predictions/data/{{domain}}/{{base}}/seed{seed}.costs.json", seed=SEEDS),
    output:
        "<results>/speed/{domain}.{base}.tsv",
    log:
        "<logs>/tabulate_speed/{domain}.{base}.log",
    benchmark:
        "<benchmarks>/tabulate_speed/{domain}.{base}.tsv"
    conda:
        "../../envs/data.yaml"
    resources:
        mem_mb=per_attempt(500),
        runtime=per_attempt(10),
        attempt=per_attempt(1),
    params:
        code=code_digest("reporting/transcripts.py"),
    script:
        "../../scripts/tabulate_speed.py"


rule summarise_mixture:
    input:
        metrics=lambda wc: collect(
            "<results>/metrics/data/{domain}/{base}.json",
            domain=STUDY.mixtures[wc.mixture].experts,
            base=STUDY.mixtures[wc.mixture].base,
        ),
        base=lambda wc: f"<results>/bases/{STUDY.mixtures[wc.mixture].base}/base.json",
        recovery="<results>/metrics/recovery/{mixture}.json",
        routing="<results>/metrics/routing/{mixture}.json",
        run=f"<results>/mixtures/{{mixture}}/seed{SEEDS[0]}/mixture.json",
    output:
        report(
            "<results>/tables/{mixture}.summary.html",
            caption="../report/summary.rst",
            category="Summary",
            labels={"mixture": "{mixture}", "kind": "table"},
        ),
        multiext("<results>/tables/{mixture}.summary", ".tsv", ".md", ".tex"),
    log:
        "<logs>/summarise_mixture/{mixture}.log",
    benchmark:
        "<benchmarks>/summarise_mixture/{mixture}.tsv"
    conda:
        "../../envs/data.yaml"
    resources:
        mem_mb=per_attempt(500),
        runtime=per_attempt(10),
        attempt=per_attempt(1),
    params:
        experts=lambda wc: [f"{adapter}@{domain}" for domain, adapter in STUDY.mixtures[wc.mixture].experts.items()],
        banner=BANNER,
        code=code_digest("reporting"),
    script:
        "../../scripts/summarise_mixture.py"


rule draw_routing:
    input:
        "<results>/metrics/routing/{mixture}.json",
    output:
        report(
            "<results>/figures/{mixture}.routing.svg",
            caption="../report/routing.rst",
            category="Summary",
            labels={"mixture": "{mixture}", "kind": "routing"},
        ),
    log:
        "<logs>/draw_routing/{mixture}.log",
    benchmark:
        "<benchmarks>/draw_routing/{mixture}.tsv"
    conda:
        "../../envs/data.yaml"
    resources:
        mem_mb=per_attempt(500),
        runtime=per_attempt(10),
        attempt=per_attempt(1),
    params:
        banner=BANNER,
        code=code_digest("reporting"),
    script:
        "../../scripts/draw_routing.py"


rule draw_transfer:
    input:
        "<results>/tables/{mixture}.summary.tsv",
    output:
        report(
            "<results>/figures/{mixture}.transfer.svg",
            caption="../report/transfer.rst",
            category="Summary",
            labels={"mixture": "{mixture}", "kind": "transfer"},
        ),
    log:
        "<logs>/draw_transfer/{mixture}.log",
    benchmark:
        "<benchmarks>/draw_transfer/{mixture}.tsv"
    conda:
        "../../envs/data.yaml"
    resources:
        mem_mb=per_attempt(500),
        runtime=per_attempt(10),
        attempt=per_attempt(1),
    params:
        banner=BANNER,
        code=code_digest("reporting"),
    script:
        "../../scripts/draw_transfer.py"


rule draw_curves:
    input:
        lambda wc: list(curves_on(wc.base).values()),
    output:
        report(
            "<results>/figures/{base}.curves.svg",
            caption="../report/curves.rst",
            category="Training",
            labels={"base": "{base}", "kind": "learning curves"},
        ),
    log:
        "<logs>/draw_curves/{base}.log",
    benchmark:
        "<benchmarks>/draw_curves/{base}.tsv"
    conda:
        "../../envs/data.yaml"
    resources:
        mem_mb=per_attempt(500),
        runtime=per_attempt(10),
        attempt=per_attempt(1),
    params:
        runs=lambda wc, input: by_name(curves_on(wc.base), input),
        banner=BANNER,
        code=code_digest("reporting"),
    script:
        "../../scripts/draw_curves.py"


rule draw_ranks:
    input:
        runs=lambda wc: [path for runs in ranked_on(wc.base).values() for path in runs],
        folders=lambda wc: folders_of([path for runs in ranked_on(wc.base).values() for path in runs]),
    output:
        report(
            "<results>/figures/{base}.ranks.svg",
            caption="../report/ranks.rst",
            category="Training",
            labels={"base": "{base}", "kind": "learned ranks"},
        ),
    log:
        "<logs>/draw_ranks/{base}.log",
    benchmark:
        "<benchmarks>/draw_ranks/{base}.tsv"
    conda:
        "../../envs/data.yaml"
    resources:
        mem_mb=per_attempt(500),
        runtime=per_attempt(10),
        attempt=per_attempt(1),
    params:
        runs=lambda wc, input: by_names(ranked_on(wc.base), SEEDS, input.runs),
        banner=BANNER,
        code=code_digest("reporting/method_figures.py"),
    script:
        "../../scripts/draw_ranks.py"
