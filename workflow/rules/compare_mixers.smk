"""Mixers against one another and against their controls: the mixtures of one base, all of the same experts.

Inputs: predictions, routing and `mixture.json` of `compare_mixers.base`. Outputs: `<results>/contrasts/{base}.mixers.json`
(what each recovers of the oracle's gain, and its difference to `compare_mixers.against`), one table, and for each mixture
that looks at its input two figures: its weights by layer, and by token of inputs of several domains.
"""

MIXING = STUDY.compare_mixers
MIXERS = {name: mixture for name, mixture in STUDY.mixtures.items() if MIXING and mixture.base == MIXING.base}
ROUTERS = [name for name, mixture in MIXERS.items() if mixture.reads != "nothing" and not mixture.needs_domain]
MIXED = MIXERS[MIXING.against].experts if MIXING else {}
PROMPTS = MIXING.prompts if MIXING else {}
PROMPTED = [domain for domain in MIXED if any(domain in domains for domains in PROMPTS.values())]

MIXER_TABLES = [f"<results>/tables/{MIXING.base}.mixers"] if MIXING else []
MIXER_FIGURES = [
    *collect("<results>/figures/{mixture}.layers.svg", mixture=ROUTERS),
    *collect("<results>/figures/{mixture}.tokens.svg", mixture=ROUTERS if PROMPTS else []),
]


rule compare_mixers:
    input:
        table_files(MIXER_TABLES),
        MIXER_FIGURES,


rule contrast_mixers:
    input:
        predictions=[f"<results>/predictions/data/{d}/{{base}}/seed{seed}.parquet" for d in MIXED for seed in SEEDS],
        baselines=collect("<results>/predictions/data/{domain}/baselines.parquet", domain=MIXED),
        data=collect("<results>/data/{domain}/test.parquet", domain=MIXED),
        valid=collect("<results>/data/{domain}/valid.parquet", domain=MIXED),
    output:
        "<results>/contrasts/{base}.mixers.json",
    log:
        "<logs>/contrast_mixers/{base}.log",
    benchmark:
        "<benchmarks>/contrast_mixers/{base}.tsv"
    conda:
        "../../envs/data.yaml"
    resources:
        mem_mb=per_attempt(STUDY.resources.mem_mb),
        runtime=per_attempt(STUDY.resources.runtime),
        attempt=per_attempt(1),
    params:
        predictions=lambda wc, input: by_names(MIXED, SEEDS, input.predictions),
        baselines=lambda wc, input: by_name(MIXED, input.baselines),
        data=lambda wc, input: by_name(MIXED, input.data),
        tasks={domain: plain(DOMAINS[domain].task) for domain in MIXED},
        experts=MIXED,
        mixtures=[*MIXERS],
        against=MIXING and MIXING.against,
        resamples=STUDY.evaluation.resamples,
        floor=FLOOR,
        code=code_digest("evaluation/recovery.py", *domain_modules("metrics", MIXED)),
    script:
        "../../scripts/contrast_mixers.py"


rule tabulate_mixers:
    input:
        contrast="<results>/contrasts/{base}.mixers.json",
        routes=[f"<results>/predictions/data/{d}/{{base}}/seed{seed}.routing.json" for d in MIXED for seed in SEEDS],
        costs=[f"<results>/predictions/data/{d}/{{base}}/seed{seed}.costs.json" for d in MIXED for seed in SEEDS],
        runs=collect("<results>/mixtures/{mixture}/seed{seed}/mixture.json", mixture=MIXERS, seed=SEEDS),
        base="<results>/bases/{base}/base.json",
    output:
        report(
            "<results>/tables/{base}.mixers.html",
            caption="../report/mixers.rst",
            category="Mixers",
            labels={"base": "{base}", "kind": "table"},
        ),
        multiext("<results>/tables/{base}.mixers", ".tsv", ".md", ".tex"),
    log:
        "<logs>/tabulate_mixers/{base}.log",
    benchmark:
        "<benchmarks>/tabulate_mixers/{base}.tsv"
    conda:
        "../../envs/data.yaml"
    resources:
        mem_mb=per_attempt(500),
        runtime=per_attempt(10),
        attempt=per_attempt(1),
    params:
        runs=lambda wc, input: list(zip([name for name in MIXERS for _ in SEEDS], map(str, input.runs))),
        banner=BANNER,
        code=code_digest("reporting/mixers.py"),
    script:
        "../../scripts/tabulate_mixers.py"


rule draw_layers:
    input:
        "<results>/metrics/routing/{mixture}.json",
    output:
        report(
            "<results>/figures/{mixture}.layers.svg",
            caption="../report/layers.rst",
            category="Mixers",
            labels={"mixture": "{mixture}", "kind": "weights by layer"},
        ),
    log:
        "<logs>/draw_layers/{mixture}.log",
    benchmark:
        "<benchmarks>/draw_layers/{mixture}.tsv"
    conda:
        "../../envs/data.yaml"
    resources:
        mem_mb=per_attempt(500),
        runtime=per_attempt(10),
        attempt=per_attempt(1),
    params:
        banner=BANNER,
        code=code_digest("reporting/figures.py"),
    script:
        "../../scripts/draw_layers.py"


rule route_tokens:
    input:
        folder=ancient("<results>/bases/{base}"),
        base="<results>/bases/{base}/base.json",
        mixtures=collect(f"<results>/mixtures/{{mixture}}/seed{SEEDS[0]}/mixture.json", mixture=ROUTERS),
        mixture_folders=ancient(collect(f"<results>/mixtures/{{mixture}}/seed{SEEDS[0]}", mixture=ROUTERS)),
        data=collect("<results>/data/{domain}/test.parquet", domain=PROMPTED),
        audio=audio_of("data", PROMPTED),
    output:
        "<results>/predictions/tokens/{base}.json",
    log:
        "<logs>/route_tokens/{base}.log",
    benchmark:
        "<benchmarks>/route_tokens/{base}.tsv"
    conda:
        "../../envs/train.yaml"
    threads: STUDY.resources.threads
    resources:
        mem_mb=per_attempt(STUDY.resources.mem_mb),
        runtime=per_attempt(STUDY.resources.runtime),
        attempt=per_attempt(1),
        gpu=STUDY.resources.gpu,
    params:
        mixtures=lambda wc, input: by_name(ROUTERS, input.mixtures),
        prompts=PROMPTS,
        data=lambda wc, input: by_name(PROMPTED, input.data),
        tasks={domain: plain(DOMAINS[domain].task) for domain in PROMPTED},
        threads=STUDY.resources.threads,
        device=STUDY.resources.device,
        code=code_digest("evaluation/tokens.py", "bases", "mixers/methods", *domain_modules("task", PROMPTED)),
    script:
        "../../scripts/route_tokens.py"


rule draw_tokens:
    input:
        lambda wc: f"<results>/predictions/tokens/{STUDY.mixtures[wc.mixture].base}.json",
    output:
        report(
            "<results>/figures/{mixture}.tokens.svg",
            caption="../report/tokens.rst",
            category="Mixers",
            labels={"mixture": "{mixture}", "kind": "weights by token"},
        ),
    log:
        "<logs>/draw_tokens/{mixture}.log",
    benchmark:
        "<benchmarks>/draw_tokens/{mixture}.tsv"
    conda:
        "../../envs/data.yaml"
    resources:
        mem_mb=per_attempt(500),
        runtime=per_attempt(10),
        attempt=per_attempt(1),
    params:
        banner=BANNER,
        code=code_digest("reporting/figures.py"),
    script:
        "../../scripts/draw_tokens.py"
