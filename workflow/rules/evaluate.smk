"""What systems say about held-out records, and what that is worth.

Inputs: datasets, bases, adapters, mixtures. Outputs: `<results>/predictions/` (long tables) and `<results>/metrics/`.
"""


rule predict:
    input:
        base="<results>/bases/{base}/base.json",
        data=expand("<results>/data/{{domain}}/{split}.parquet", split=("valid", "test")),
        adapters=adapters_for,
        mixtures=lambda wc: collect(
            "<results>/mixtures/{mixture}/seed{seed}/mixture.json", mixture=mixtures_on(wc.base), seed=wc.seed
        ),
    output:
        predictions="<results>/predictions/{domain}/{base}/seed{seed}.parquet",
        routing="<results>/predictions/{domain}/{base}/seed{seed}.routing.json",
    log:
        "<logs>/predict/{domain}/{base}/seed{seed}.log",
    benchmark:
        "<benchmarks>/predict/{domain}/{base}/seed{seed}.tsv"
    conda:
        "../../envs/train.yaml"
    threads: STUDY.resources.threads
    resources:
        mem_mb=memory,
        runtime=STUDY.resources.runtime,
        gpu=STUDY.resources.gpu,
    params:
        systems=lambda wc: list(systems_on(wc.domain, wc.base)),
        mixtures=lambda wc: mixtures_on(wc.base),
        task=lambda wc: plain(DOMAINS[wc.domain].task),
        evaluation=plain(STUDY.evaluation, without=["resamples"]),
        threads=STUDY.resources.threads,
        device=STUDY.resources.device,
        code=lambda wc: code_digest("evaluation/predict.py", "bases", "mixers/kinds", f"domains/{wc.domain}/task.py"),
    script:
        "../../scripts/predict.py"


rule predict_baselines:
    input:
        expand("<results>/data/{{domain}}/{split}.parquet", split=("train", "test")),
    output:
        "<results>/predictions/{domain}/baselines.parquet",
    log:
        "<logs>/predict_baselines/{domain}.log",
    benchmark:
        "<benchmarks>/predict_baselines/{domain}.tsv"
    conda:
        "../../envs/data.yaml"
    resources:
        mem_mb=memory,
        runtime=STUDY.resources.runtime,
    params:
        task=lambda wc: plain(DOMAINS[wc.domain].task),
        max_records=STUDY.evaluation.max_records,
        code=lambda wc: code_digest("evaluation/baselines.py", f"domains/{wc.domain}/task.py"),
    script:
        "../../scripts/predict_baselines.py"


rule fold:
    input:
        predictions=expand("<results>/predictions/{{domain}}/{{base}}/seed{seed}.parquet", seed=SEEDS),
        folding=f"<results>/bases/{STUDY.folding}/base.json",
    output:
        "<results>/structures/{domain}/{base}/scores.parquet",
    log:
        "<logs>/fold/{domain}/{base}.log",
    benchmark:
        "<benchmarks>/fold/{domain}/{base}.tsv"
    conda:
        "../../envs/train.yaml"
    threads: STUDY.resources.threads
    resources:
        mem_mb=memory,
        runtime=STUDY.resources.runtime,
        gpu=STUDY.resources.gpu,
    params:
        seeds=SEEDS,
        references=STUDY.structures,
        threads=STUDY.resources.threads,
        device=STUDY.resources.device,
        code=lambda wc: code_digest("evaluation/fold.py", "bases/folding.py", f"domains/{wc.domain}/task.py"),
    script:
        "../../scripts/fold.py"


rule score:
    input:
        predictions=expand("<results>/predictions/{{domain}}/{{base}}/seed{seed}.parquet", seed=SEEDS),
        baselines="<results>/predictions/{domain}/baselines.parquet",
        data=expand("<results>/data/{{domain}}/{split}.parquet", split=SPLITS),
        structures=lambda wc: (
            ["<results>/structures/{domain}/{base}/scores.parquet"] if is_structured(wc.domain, wc.base) else []
        ),
    output:
        "<results>/metrics/{domain}/{base}.json",
    log:
        "<logs>/score/{domain}/{base}.log",
    benchmark:
        "<benchmarks>/score/{domain}/{base}.tsv"
    conda:
        "../../envs/data.yaml"
    resources:
        mem_mb=memory,
        runtime=STUDY.resources.runtime,
    params:
        task=lambda wc: plain(DOMAINS[wc.domain].task),
        seeds=SEEDS,
        resamples=STUDY.evaluation.resamples,
        code=lambda wc: code_digest("evaluation/score.py", f"domains/{wc.domain}/metrics.py"),
    script:
        "../../scripts/score.py"
