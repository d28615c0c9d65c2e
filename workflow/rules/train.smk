"""Adapters.

Inputs: a dataset (train and valid, never test) and a base. Outputs: `<results>/adapters/{domain}/{base}/{adapter}/` with
every learning curve and one PEFT folder for each seed.
"""


rule train_sweep:
    input:
        folder=ancient("<results>/bases/{base}"),
        base="<results>/bases/{base}/base.json",
        data=expand("<results>/data/{{domain}}/{split}.parquet", split=("train", "valid")),
        audio=lambda wc: audio_of("data", [wc.domain]),
        audit=ancient("<results>/data/{domain}/audit.json"),
    output:
        runs="<results>/adapters/{domain}/{base}/{adapter}/runs.parquet",
        adapters=expand("<results>/adapters/{{domain}}/{{base}}/{{adapter}}/seed{seed}/run.json", seed=SEEDS),
        folders=directory(expand("<results>/adapters/{{domain}}/{{base}}/{{adapter}}/seed{seed}", seed=SEEDS)),
    log:
        "<logs>/train_sweep/{domain}/{base}/{adapter}.log",
    benchmark:
        "<benchmarks>/train_sweep/{domain}/{base}/{adapter}.tsv"
    priority: 1  # mixtures wait for it
    conda:
        "../../envs/train.yaml"
    threads: training_threads
    resources:
        mem_mb=training_memory,
        runtime=per_attempt(STUDY.resources.runtime),
        attempt=per_attempt(1),
        gpu=training_gpus,
    params:
        adapter=lambda wc: plain(STUDY.adapters[wc.adapter]),
        task=lambda wc: plain(DOMAINS[wc.domain].task),
        seeds=SEEDS,
        max_valid=STUDY.evaluation.max_valid,
        device=STUDY.resources.device,
        checkpoints=CHECKPOINTS,
        code=lambda wc: code_of_adapter(wc.domain, STUDY.adapters[wc.adapter].method),
    script:
        "../../scripts/train_sweep.py"
