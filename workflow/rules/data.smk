"""Raw files to leak-proof datasets.

Inputs: the config's sources. Outputs: `<results>/{data,general}/{domain}/` with four splits, card, rejects and audit;
`data` holds what is studied, `general` what bases are pretrained on.
"""


rule fetch_source:
    input:
        lambda wc: local_files(CORPORA[wc.corpus][wc.domain].source),
    output:
        "<results>/raw/{corpus}/{domain}/files.json",
        directory("<results>/raw/{corpus}/{domain}"),
    log:
        "<logs>/fetch_source/{corpus}/{domain}.log",
    benchmark:
        "<benchmarks>/fetch_source/{corpus}/{domain}.tsv"
    retries: 2
    conda:
        "../../envs/data.yaml"
    resources:
        mem_mb=per_attempt(1000),
        runtime=per_attempt(STUDY.resources.runtime),
        attempt=per_attempt(1),
    params:
        source=lambda wc: plain(CORPORA[wc.corpus][wc.domain].source),
        listed=lambda wc: listed_state(CORPORA[wc.corpus][wc.domain].source),
        population=lambda wc: POPULATION[wc.corpus],
        seed=STUDY.split_seed,
        code=lambda wc: code_digest("domains/fetch.py", *domain_modules("simulate", [wc.domain])),
        shared=STUDY.shared,
    script:
        "../../scripts/fetch_source.py"


rule build_dataset:
    input:
        raw=ancient("<results>/raw/{corpus}/{domain}"),
        files="<results>/raw/{corpus}/{domain}/files.json",
        pretraining=pretraining_of,
    output:
        expand("<results>/{{corpus}}/{{domain}}/{split}.parquet", split=SPLITS),
        "<results>/{corpus}/{domain}/card.json",
        "<results>/{corpus}/{domain}/rejects.tsv",
    log:
        "<logs>/build_dataset/{corpus}/{domain}.log",
    benchmark:
        "<benchmarks>/build_dataset/{corpus}/{domain}.tsv"
    conda:
        "../../envs/data.yaml"
    resources:
        mem_mb=per_attempt(STUDY.resources.mem_mb),
        runtime=per_attempt(STUDY.resources.runtime),
        attempt=per_attempt(1),
    params:
        dataset=lambda wc: plain(CORPORA[wc.corpus][wc.domain].dataset),
        seed=STUDY.split_seed,
        code=lambda wc: code_digest("domains/dataset.py", *domain_modules("build", [wc.domain])),
        shared=STUDY.shared,
    script:
        "../../scripts/build_dataset.py"


rule audit_split:
    input:
        data=expand("<results>/{{corpus}}/{{domain}}/{split}.parquet", split=SPLITS),
        pretraining=pretraining_of,
        transfer=lambda wc: list(transfer_of(wc).values()),
    output:
        "<results>/{corpus}/{domain}/audit.json",
    log:
        "<logs>/audit_split/{corpus}/{domain}.log",
    benchmark:
        "<benchmarks>/audit_split/{corpus}/{domain}.tsv"
    conda:
        "../../envs/data.yaml"
    resources:
        mem_mb=per_attempt(STUDY.resources.mem_mb),
        runtime=per_attempt(STUDY.resources.runtime),
        attempt=per_attempt(1),
    params:
        dataset=lambda wc: plain(CORPORA[wc.corpus][wc.domain].dataset),
        transfer=lambda wc, input: by_name(transfer_of(wc), input.transfer),
        code=lambda wc: code_digest("domains/dataset.py", *domain_modules("build", [wc.domain])),
    script:
        "../../scripts/audit_split.py"
