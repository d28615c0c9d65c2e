"""What is done to adapters around their training, against everything that it must beat.

Inputs: datasets and bases of the entries of `lifecycle`. Outputs: `<results>/lifecycle/{stage}/` (predictions and measures
of every arm, adapters and models that are kept), and one table for each entry.
"""


rule run_stages:
    input:
        table_files(STAGES),


rule run_stage:
    input:
        folders=lambda wc: folders_of(bases_of(wc.stage)),
        base=lambda wc: bases_of(wc.stage),
        data=lambda wc: collect(
            "<results>/data/{domain}/{split}.parquet",
            domain=STUDY.lifecycle[wc.stage].domains,
            split=SPLITS,
        ),
        audio=lambda wc: audio_of("data", STUDY.lifecycle[wc.stage].domains),
        audits=lambda wc: ancient(
            collect("<results>/data/{domain}/audit.json", domain=STUDY.lifecycle[wc.stage].domains)
        ),
    output:
        measures="<results>/lifecycle/{stage}/measures.json",
        invented="<results>/lifecycle/{stage}/invented.json",
        predictions=directory("<results>/lifecycle/{stage}/predictions"),
        kept=directory("<results>/lifecycle/{stage}/kept"),
    log:
        "<logs>/run_stage/{stage}.log",
    benchmark:
        "<benchmarks>/run_stage/{stage}.tsv"
    priority: 1
    conda:
        "../../envs/train.yaml"
    threads: lambda wc: adapter_of(wc.stage).training.threads
    resources:
        mem_mb=per_attempt(STUDY.resources.mem_mb),
        runtime=per_attempt(STUDY.resources.runtime),
        attempt=per_attempt(1),
        gpu=STUDY.resources.gpu,
    params:
        entry=lambda wc: plain(STUDY.lifecycle[wc.stage]),
        adapter=lambda wc: plain(adapter_of(wc.stage)),
        further=lambda wc, input: by_name(STUDY.lifecycle[wc.stage].further_bases, input.base[1:]),
        data=lambda wc, input: first_by_name(STUDY.lifecycle[wc.stage].domains, input.data),
        tasks=lambda wc: {domain: plain(DOMAINS[domain].task) for domain in STUDY.lifecycle[wc.stage].domains},
        seeds=SEEDS,
        evaluation=EVALUATION,
        device=STUDY.resources.device,
        checkpoints=CHECKPOINTS,
        code=lambda wc: stage_code(
            STUDY.lifecycle[wc.stage].procedure, adapter_of(wc.stage).method, STUDY.lifecycle[wc.stage].domains
        ),
    script:
        "../../scripts/run_stage.py"


rule contrast_stage:
    input:
        measures="<results>/lifecycle/{stage}/measures.json",
        invented="<results>/lifecycle/{stage}/invented.json",
        predictions="<results>/lifecycle/{stage}/predictions",
        data=lambda wc: collect(
            "<results>/data/{domain}/{split}.parquet", domain=STUDY.lifecycle[wc.stage].domains, split=SPLITS
        ),
        baselines=lambda wc: stage_baselines(wc.stage),
    output:
        "<results>/contrasts/{stage}.stage.json",
    log:
        "<logs>/contrast_stage/{stage}.log",
    benchmark:
        "<benchmarks>/contrast_stage/{stage}.tsv"
    conda:
        "../../envs/data.yaml"
    resources:
        mem_mb=per_attempt(STUDY.resources.mem_mb),
        runtime=per_attempt(STUDY.resources.runtime),
        attempt=per_attempt(1),
    params:
        entry=lambda wc: plain(STUDY.lifecycle[wc.stage]),
        data=lambda wc, input: first_by_name(STUDY.lifecycle[wc.stage].domains, input.data),
        baselines=lambda wc, input: first_by_name(STUDY.lifecycle[wc.stage].domains, input.baselines),
        tasks=lambda wc: {domain: plain(DOMAINS[domain].task) for domain in STUDY.lifecycle[wc.stage].domains},
        seeds=SEEDS,
        resamples=STUDY.evaluation.resamples,
        floor=FLOOR,
        code=lambda wc: code_digest(
            "lifecycle/contrast.py",
            code_path("procedure", STUDY.lifecycle[wc.stage].procedure),
            *domain_modules("metrics", STUDY.lifecycle[wc.stage].domains),
            *domain_modules("task", STUDY.lifecycle[wc.stage].domains),
        ),
    script:
        "../../scripts/contrast_stage.py"


rule tabulate_stage:
    input:
        contrast="<results>/contrasts/{stage}.stage.json",
        bases=lambda wc: bases_of(wc.stage),
    output:
        report(
            "<results>/tables/{stage}.stage.html",
            caption="../report/stage.rst",
            category="Lifecycle",
            labels={"stage": "{stage}", "kind": "table"},
        ),
        multiext("<results>/tables/{stage}.stage", ".tsv", ".md", ".tex"),
    log:
        "<logs>/tabulate_stage/{stage}.log",
    benchmark:
        "<benchmarks>/tabulate_stage/{stage}.tsv"
    conda:
        "../../envs/data.yaml"
    resources:
        mem_mb=per_attempt(500),
        runtime=per_attempt(10),
        attempt=per_attempt(1),
    params:
        banner=BANNER,
        code=code_digest("reporting/stages.py"),
    script:
        "../../scripts/tabulate_stage.py"
