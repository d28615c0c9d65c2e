"""Mixtures.

Inputs: adapters of one base, the `gate` splits of their domains (`train` too where a mixer starts experts of its own)
and `valid`, which chooses learning rates. Outputs: `<results>/mixtures/{mixture}/` with every learning curve and one
folder for each seed: gate, order of the experts, and the experts themselves; for mixtures with `features: true`,
`<results>/features/{domain}/{base}/{split}/` with what the frozen base makes of a split that is learnt from.
"""


rule compute_gate_features:
    input:
        folder=ancient("<results>/bases/{base}"),
        base="<results>/bases/{base}/base.json",
        data="<results>/data/{domain}/{split}.parquet",
        audio=lambda wc: audio_of("data", [wc.domain]),
    output:
        "<results>/features/{domain}/{base}/{split}/index.json",
        directory("<results>/features/{domain}/{base}/{split}"),
    log:
        "<logs>/compute_gate_features/{domain}/{base}/{split}.log",
    benchmark:
        "<benchmarks>/compute_gate_features/{domain}/{base}/{split}.tsv"
    wildcard_constraints:
        split="train|gate",
    conda:
        "../../envs/train.yaml"
    threads: STUDY.resources.threads
    resources:
        mem_mb=per_attempt(STUDY.resources.mem_mb),
        runtime=per_attempt(STUDY.resources.runtime),
        attempt=per_attempt(1),
        gpu=STUDY.resources.gpu,
    params:
        task=lambda wc: plain(DOMAINS[wc.domain].task),
        batch_tokens=STUDY.evaluation.batch_tokens,
        threads=STUDY.resources.threads,
        device=STUDY.resources.device,
        checkpoints=CHECKPOINTS,
        code=lambda wc: features_code(wc.domain),
    script:
        "../../scripts/compute_gate_features.py"


rule train_mixture:
    input:
        folder=lambda wc: ancient(f"<results>/bases/{STUDY.mixtures[wc.mixture].base}"),
        base=lambda wc: f"<results>/bases/{STUDY.mixtures[wc.mixture].base}/base.json",
        expert_folders=lambda wc: folders_of(experts_of(wc)),
        experts=experts_of,
        data=lambda wc: collect(
            "<results>/data/{domain}/{split}.parquet",
            domain=STUDY.mixtures[wc.mixture].experts,
            split=(*STUDY.mixtures[wc.mixture].splits, "valid"),
        ),
        audio=lambda wc: audio_of("data", STUDY.mixtures[wc.mixture].experts),
        feature_folders=lambda wc: folders_of(features_of(wc)),
        features=features_of,
    output:
        runs="<results>/mixtures/{mixture}/runs.parquet",
        mixtures=expand("<results>/mixtures/{{mixture}}/seed{seed}/mixture.json", seed=SEEDS),
        folders=directory(expand("<results>/mixtures/{{mixture}}/seed{seed}", seed=SEEDS)),
    log:
        "<logs>/train_mixture/{mixture}.log",
    benchmark:
        "<benchmarks>/train_mixture/{mixture}.tsv"
    priority: 1  # all predictions of its base wait for it
    conda:
        "../../envs/train.yaml"
    threads: lambda wc: STUDY.mixtures[wc.mixture].training.threads
    resources:
        mem_mb=per_attempt(STUDY.resources.mem_mb),
        runtime=per_attempt(STUDY.resources.runtime),
        attempt=per_attempt(1),
        gpu=STUDY.resources.gpu,
    params:
        entry=lambda wc: plain(STUDY.mixtures[wc.mixture]),
        experts=lambda wc, input: first_by_name(domains_of(wc.mixture), input.experts),
        data=lambda wc, input: first_by_name(domains_of(wc.mixture), input.data),
        features=lambda wc, input: first_by_name(domains_of(wc.mixture), input.features),
        tasks=lambda wc: {domain: plain(DOMAINS[domain].task) for domain in STUDY.mixtures[wc.mixture].experts},
        seeds=SEEDS,
        max_valid=STUDY.evaluation.max_valid,
        device=STUDY.resources.device,
        checkpoints=CHECKPOINTS,
        code=lambda wc: mixture_code(STUDY.mixtures[wc.mixture].experts),
    script:
        "../../scripts/train_mixture.py"
