"""Frozen bases.

Inputs: a local folder (its own, or under `bases_root`), a hub id, or general data to pretrain on. Outputs:
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
    log:
        "<logs>/prepare_base/{base}.log",
    benchmark:
        "<benchmarks>/prepare_base/{base}.tsv"
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
