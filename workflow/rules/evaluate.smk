"""What systems say about held-out records, and what that is worth.

Inputs: datasets, bases, adapters, mixtures. Outputs: `<results>/predictions/` (long tables) and `<results>/metrics/`, of
`data` for every system and of `general` for the base and a domain's own adapters; of each mixture, how it
routed and what it recovers of the oracle's gain.
"""


rule predict:
    input:
        folder=ancient("<results>/bases/{base}"),
        base="<results>/bases/{base}/base.json",
        data=expand(
            "<results>/{{corpus}}/{{domain}}/{split}.parquet",
            split=SPLITS if STUDY.evaluation.models_rank else ("valid", "test"),
        ),
        audio=lambda wc: audio_of(wc.corpus, [wc.domain]),
        adapter_folders=lambda wc: folders_of(adapters_for(wc)),
        adapters=adapters_for,
        mixture_folders=lambda wc: folders_of(mixtures_for(wc)),
        mixtures=mixtures_for,
    output:
        expand("<results>/predictions/{{corpus}}/{{domain}}/{{base}}/seed{seed}.parquet", seed=SEEDS),
        expand("<results>/predictions/{{corpus}}/{{domain}}/{{base}}/seed{seed}.routing.json", seed=SEEDS),
        expand("<results>/predictions/{{corpus}}/{{domain}}/{{base}}/seed{seed}.costs.json", seed=SEEDS),
    log:
        "<logs>/predict/{corpus}/{domain}/{base}.log",
    benchmark:
        "<benchmarks>/predict/{corpus}/{domain}/{base}.tsv"
    conda:
        "../../envs/train.yaml"
    threads: STUDY.resources.threads
    resources:
        mem_mb=per_attempt(STUDY.resources.mem_mb),
        runtime=per_attempt(STUDY.resources.runtime),
        attempt=per_attempt(1),
        gpu=STUDY.resources.gpu,
    params:
        adapters=lambda wc, input: by_names(SEEDS, systems_on(wc.corpus, wc.domain, wc.base), input.adapters),
        mixtures=lambda wc, input: by_names(SEEDS, mixtures_on(wc.corpus, wc.base), input.mixtures),
        cuts=lambda wc: cut_systems(wc.corpus, wc.domain, wc.base),
        asked=lambda wc: ASKED[wc.corpus],
        task=lambda wc: plain(CORPORA[wc.corpus][wc.domain].task),
        evaluation=EVALUATION,
        threads=STUDY.resources.threads,
        device=STUDY.resources.device,
        code=lambda wc: code_digest(
            "evaluation/predict.py",
            "bases",
            "mixers/methods",
            *domain_modules("task", [wc.domain]),
            *cutting_methods(wc.corpus, wc.domain, wc.base),
        ),
    script:
        "../../scripts/predict.py"


rule predict_baselines:
    input:
        data=expand("<results>/data/{{domain}}/{split}.parquet", split=SPLITS),
        transfer=lambda wc: list(transfer_of(wc).values()),
    output:
        "<results>/predictions/data/{domain}/baselines.parquet",
    log:
        "<logs>/predict_baselines/{domain}.log",
    benchmark:
        "<benchmarks>/predict_baselines/{domain}.tsv"
    conda:
        "../../envs/data.yaml"
    resources:
        mem_mb=per_attempt(STUDY.resources.mem_mb),
        runtime=per_attempt(STUDY.resources.runtime),
        attempt=per_attempt(1),
    params:
        task=lambda wc: plain(DOMAINS[wc.domain].task),
        max_records=STUDY.evaluation.max_records,
        max_valid=STUDY.evaluation.max_valid,
        samples=STUDY.evaluation.samples,
        transfer=lambda wc, input: by_name(transfer_of(wc), input.transfer),
        ranked_users=STUDY.evaluation.ranked_users,
        code=lambda wc: code_digest("evaluation/baselines.py", *domain_modules("task", [wc.domain])),
    script:
        "../../scripts/predict_baselines.py"


rule score:
    input:
        predictions=expand("<results>/predictions/{{corpus}}/{{domain}}/{{base}}/seed{seed}.parquet", seed=SEEDS),
        baselines=lambda wc: baselines_of(wc.domain, wc.base) if wc.corpus == "data" else [],
        data=expand("<results>/{{corpus}}/{{domain}}/{split}.parquet", split=SPLITS),
        structures=structures_of,
    output:
        "<results>/metrics/{corpus}/{domain}/{base}.json",
    log:
        "<logs>/score/{corpus}/{domain}/{base}.log",
    benchmark:
        "<benchmarks>/score/{corpus}/{domain}/{base}.tsv"
    conda:
        "../../envs/data.yaml"
    resources:
        mem_mb=per_attempt(STUDY.resources.mem_mb),
        runtime=per_attempt(STUDY.resources.runtime),
        attempt=per_attempt(1),
    params:
        task=lambda wc: plain(CORPORA[wc.corpus][wc.domain].task),
        predictions=lambda wc, input: by_name(SEEDS, input.predictions),
        resamples=STUDY.evaluation.resamples,
        floor=FLOOR,
        code=lambda wc: code_digest("evaluation/score.py", *domain_modules("metrics", [wc.domain])),
    script:
        "../../scripts/score.py"


rule list_errors:
    input:
        predictions=expand("<results>/predictions/data/{{domain}}/{{base}}/seed{seed}.parquet", seed=SEEDS),
        data="<results>/data/{domain}/test.parquet",
    output:
        "<results>/metrics/errors/{domain}/{base}.json",
    log:
        "<logs>/list_errors/{domain}/{base}.log",
    benchmark:
        "<benchmarks>/list_errors/{domain}/{base}.tsv"
    conda:
        "../../envs/data.yaml"
    resources:
        mem_mb=per_attempt(1000),
        runtime=per_attempt(10),
        attempt=per_attempt(1),
    params:
        predictions=lambda wc, input: by_name(SEEDS, input.predictions),
        task=lambda wc: plain(DOMAINS[wc.domain].task),
        code=lambda wc: code_digest("evaluation/transcripts.py", *domain_modules("errors", [wc.domain])),
    script:
        "../../scripts/list_errors.py"


rule gather_routing:
    input:
        unpack(routing_of),
    output:
        "<results>/metrics/routing/{mixture}.json",
    log:
        "<logs>/gather_routing/{mixture}.log",
    benchmark:
        "<benchmarks>/gather_routing/{mixture}.tsv"
    conda:
        "../../envs/data.yaml"
    resources:
        mem_mb=per_attempt(500),
        runtime=per_attempt(10),
        attempt=per_attempt(1),
    params:
        code=code_digest("evaluation/routing.py"),
    script:
        "../../scripts/gather_routing.py"


rule measure_recovery:
    input:
        predictions=lambda wc: collect(
            "<results>/predictions/data/{domain}/{base}/seed{seed}.parquet",
            domain=domains_of(wc.mixture),
            base=STUDY.mixtures[wc.mixture].base,
            seed=SEEDS,
        ),
        baselines=lambda wc: collect(
            "<results>/predictions/data/{domain}/baselines.parquet", domain=domains_of(wc.mixture)
        ),
        data=lambda wc: collect("<results>/data/{domain}/test.parquet", domain=domains_of(wc.mixture)),
        valid=lambda wc: collect("<results>/data/{domain}/valid.parquet", domain=domains_of(wc.mixture)),
    output:
        "<results>/metrics/recovery/{mixture}.json",
    log:
        "<logs>/measure_recovery/{mixture}.log",
    benchmark:
        "<benchmarks>/measure_recovery/{mixture}.tsv"
    conda:
        "../../envs/data.yaml"
    resources:
        mem_mb=per_attempt(STUDY.resources.mem_mb),
        runtime=per_attempt(STUDY.resources.runtime),
        attempt=per_attempt(1),
    params:
        predictions=lambda wc, input: by_names(domains_of(wc.mixture), SEEDS, input.predictions),
        baselines=lambda wc, input: by_name(domains_of(wc.mixture), input.baselines),
        data=lambda wc, input: by_name(domains_of(wc.mixture), input.data),
        tasks=lambda wc: {domain: plain(DOMAINS[domain].task) for domain in domains_of(wc.mixture)},
        base=lambda wc: STUDY.mixtures[wc.mixture].base,
        experts=lambda wc: STUDY.mixtures[wc.mixture].experts,
        resamples=STUDY.evaluation.resamples,
        floor=FLOOR,
        code=lambda wc: code_digest("evaluation/recovery.py", *domain_modules("metrics", domains_of(wc.mixture))),
    script:
        "../../scripts/measure_recovery.py"
