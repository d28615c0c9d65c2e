"""Methods against one another: the adapters of one base, on every domain that trains them there, under one budget.

Inputs: predictions, learning curves and `run.json` of `compare.base`. Outputs: `<results>/contrasts/` (each method paired
with `compare.against`), two tables and two figures.
"""

BASES = [STUDY.compare.base] if STUDY.compare else []
AGAINST = STUDY.compare.against if STUDY.compare else None
COMPARED = [domain for domain, base in TRACKS if base in BASES and DOMAINS[domain].adapters[base]]
METHODS = [(d, name) for name in STUDY.adapters for d in COMPARED if name in DOMAINS[d].adapters[STUDY.compare.base]]

METHOD_TABLES = collect("<results>/tables/{base}.{table}", base=BASES, table=("methods", "costs"))
METHOD_FIGURES = collect("<results>/figures/{base}.{figure}.svg", base=BASES, figure=("rates", "pareto"))


rule compare_methods:
    input:
        table_files(METHOD_TABLES),
        METHOD_FIGURES,


rule contrast_methods:
    input:
        predictions=expand("<results>/predictions/data/{{domain}}/{{base}}/seed{seed}.parquet", seed=SEEDS),
        baselines=lambda wc: baselines_of(wc.domain, wc.base),
        data=expand("<results>/data/{{domain}}/{split}.parquet", split=SPLITS),
    output:
        "<results>/contrasts/{domain}/{base}.json",
    log:
        "<logs>/contrast_methods/{domain}/{base}.log",
    benchmark:
        "<benchmarks>/contrast_methods/{domain}/{base}.tsv"
    conda:
        "../../envs/data.yaml"
    resources:
        mem_mb=per_attempt(STUDY.resources.mem_mb),
        runtime=per_attempt(STUDY.resources.runtime),
        attempt=per_attempt(1),
    params:
        task=lambda wc: plain(DOMAINS[wc.domain].task),
        predictions=lambda wc, input: by_name(SEEDS, input.predictions),
        against=AGAINST,
        cuts=lambda wc: cut_controls(cuts_on("data", wc.domain, wc.base)),
        resamples=STUDY.evaluation.resamples,
        floor=FLOOR,
        code=lambda wc: code_digest("evaluation/contrast.py", *domain_modules("metrics", [wc.domain])),
    script:
        "../../scripts/contrast_methods.py"


rule tabulate_methods:
    input:
        contrasts=collect("<results>/contrasts/{domain}/{{base}}.json", domain=COMPARED),
        runs=[
            f"<results>/adapters/{domain}/{{base}}/{name}/seed{seed}/run.json"
            for domain, name in METHODS
            for seed in SEEDS
        ],
        base="<results>/bases/{base}/base.json",
    output:
        methods=report(
            "<results>/tables/{base}.methods.html",
            caption="../report/methods.rst",
            category="Methods",
            labels={"base": "{base}", "kind": "quality"},
        ),
        costs=report(
            "<results>/tables/{base}.costs.html",
            caption="../report/costs.rst",
            category="Methods",
            labels={"base": "{base}", "kind": "costs"},
        ),
        texts=multiext("<results>/tables/{base}.methods", ".tsv", ".md", ".tex"),
        cost_texts=multiext("<results>/tables/{base}.costs", ".tsv", ".md", ".tex"),
    log:
        "<logs>/tabulate_methods/{base}.log",
    benchmark:
        "<benchmarks>/tabulate_methods/{base}.tsv"
    conda:
        "../../envs/data.yaml"
    resources:
        mem_mb=per_attempt(500),
        runtime=per_attempt(10),
        attempt=per_attempt(1),
    params:
        runs=lambda wc, input: list(zip([name for _, name in METHODS for _ in SEEDS], map(str, input.runs))),
        banner=BANNER,
        code=code_digest("reporting/methods.py"),
    script:
        "../../scripts/tabulate_methods.py"


rule draw_rates:
    input:
        [f"<results>/adapters/{domain}/{{base}}/{name}/runs.parquet" for domain, name in METHODS],
    output:
        report(
            "<results>/figures/{base}.rates.svg",
            caption="../report/rates.rst",
            category="Methods",
            labels={"base": "{base}", "kind": "learning rates"},
        ),
    log:
        "<logs>/draw_rates/{base}.log",
    benchmark:
        "<benchmarks>/draw_rates/{base}.tsv"
    conda:
        "../../envs/data.yaml"
    resources:
        mem_mb=per_attempt(500),
        runtime=per_attempt(10),
        attempt=per_attempt(1),
    params:
        runs=lambda wc, input: by_name([f"{name}@{domain}" for domain, name in METHODS], input),
        against=AGAINST,
        banner=BANNER,
        code=code_digest("reporting/method_figures.py"),
    script:
        "../../scripts/draw_rates.py"


rule draw_pareto:
    input:
        "<results>/tables/{base}.methods.tsv",
    output:
        report(
            "<results>/figures/{base}.pareto.svg",
            caption="../report/pareto.rst",
            category="Methods",
            labels={"base": "{base}", "kind": "Pareto"},
        ),
    log:
        "<logs>/draw_pareto/{base}.log",
    benchmark:
        "<benchmarks>/draw_pareto/{base}.tsv"
    conda:
        "../../envs/data.yaml"
    resources:
        mem_mb=per_attempt(500),
        runtime=per_attempt(10),
        attempt=per_attempt(1),
    params:
        against=AGAINST,
        banner=BANNER,
        code=code_digest("reporting/method_figures.py"),
    script:
        "../../scripts/draw_pareto.py"
