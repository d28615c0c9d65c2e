"""Frozen bases.

Inputs: a local folder (its own, or under `bases_root`), a hub id, or general data to pretrain or train on. Outputs:
`<results>/bases/{base}/`, a model folder in its native format with `base.json`.
"""


rule pretrain_bases:
    input:
        collect("<results>/bases/{base}/base.json", base=STUDY.bases),


rule prepare_base:
    input:
        unpack(base_sources),
    output:
        "<results>/bases/{base}/base.json",
        directory("<results>/bases/{base}"),
    log:
        "<logs>/prepare_base/{base}.log",
    benchmark:
        "<benchmarks>/prepare_base/{base}.tsv"
    wildcard_constraints:
        base=names_pattern({*STUDY.bases} - {*CONTINUED}),
    conda:
        "../../envs/train.yaml"
    threads: lambda wc: base_threads(wc.base)
    resources:
        mem_mb=per_attempt(STUDY.resources.mem_mb),
        runtime=per_attempt(STUDY.resources.runtime),
        attempt=per_attempt(1),
        gpu=STUDY.resources.gpu,
    params:
        entry=lambda wc: plain(STUDY.bases[wc.base], without=["parameters"]),  # for the forecast alone
        folder=lambda wc: published_folder(STUDY, wc.base),
        general=lambda wc, input: by_name(STUDY.bases[wc.base].corpora, input.general),
        tasks=lambda wc: {domain: plain(GENERAL[domain].task) for domain in STUDY.bases[wc.base].corpora},
        threads=lambda wc: base_threads(wc.base),
        device=STUDY.resources.device,
        checkpoints=CHECKPOINTS,
        shared=STUDY.shared,
        code=lambda wc: base_code(STUDY.bases[wc.base].family, STUDY.bases[wc.base].corpora),
    script:
        "../../scripts/prepare_base.py"


rule continue_base:
    input:
        folder=lambda wc: ancient(f"<results>/bases/{CONTINUED[wc.base].base}"),
        start=lambda wc: f"<results>/bases/{CONTINUED[wc.base].base}/base.json",
        data=lambda wc: collect(
            "<results>/general/{domain}/{split}.parquet", domain=CONTINUED[wc.base].corpus, split=("train", "valid")
        ),
        audio=lambda wc: audio_of("general", [CONTINUED[wc.base].corpus]),
        audit=lambda wc: ancient(f"<results>/general/{CONTINUED[wc.base].corpus}/audit.json"),
    output:
        "<results>/bases/{base}/base.json",
        directory("<results>/bases/{base}"),
    log:
        "<logs>/continue_base/{base}.log",
    benchmark:
        "<benchmarks>/continue_base/{base}.tsv"
    wildcard_constraints:
        base=names_pattern(CONTINUED),
    conda:
        "../../envs/train.yaml"
    threads: training_threads
    resources:
        mem_mb=training_memory,
        runtime=per_attempt(STUDY.resources.runtime),
        attempt=per_attempt(1),
        gpu=training_gpus,
    params:
        entry=lambda wc: plain(STUDY.bases[wc.base], without=["parameters"]),
        adapter=lambda wc: plain(STUDY.adapters[CONTINUED[wc.base].adapter]),
        task=lambda wc: plain(GENERAL[CONTINUED[wc.base].corpus].task),
        max_valid=STUDY.evaluation.max_valid,
        threads=lambda wc: STUDY.adapters[CONTINUED[wc.base].adapter].training.threads,
        device=STUDY.resources.device,
        checkpoints=CHECKPOINTS,
        code=lambda wc: continued_code(CONTINUED[wc.base].corpus, STUDY.adapters[CONTINUED[wc.base].adapter].method),
    script:
        "../../scripts/continue_base.py"
