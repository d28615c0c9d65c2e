"""Mixtures.

Inputs: adapters of one base and the `gate` splits of their domains. Outputs: `<results>/mixtures/{mixture}/seed{seed}/`,
whole: gate, order of the experts, and the experts themselves.
"""


rule train_mixture:
    input:
        base=lambda wc: f"<results>/bases/{STUDY.mixtures[wc.mixture].base}/base.json",
        experts=experts_of,
        data=lambda wc: collect("<results>/data/{domain}/gate.parquet", domain=STUDY.mixtures[wc.mixture].experts),
    output:
        "<results>/mixtures/{mixture}/seed{seed}/mixture.json",
    log:
        "<logs>/train_mixture/{mixture}/seed{seed}.log",
    benchmark:
        "<benchmarks>/train_mixture/{mixture}/seed{seed}.tsv"
    conda:
        "../../envs/train.yaml"
    threads: lambda wc: STUDY.mixtures[wc.mixture].training.threads
    resources:
        mem_mb=memory,
        runtime=STUDY.resources.runtime,
        gpu=STUDY.resources.gpu,
    params:
        entry=lambda wc: plain(STUDY.mixtures[wc.mixture]),
        tasks=lambda wc: {domain: plain(DOMAINS[domain].task) for domain in STUDY.mixtures[wc.mixture].experts},
        device=STUDY.resources.device,
        code=lambda wc: code_digest(
            "training/mixture.py", "bases", "mixers/kinds", *task_modules(STUDY.mixtures[wc.mixture].experts)
        ),
    script:
        "../../scripts/train_mixture.py"
