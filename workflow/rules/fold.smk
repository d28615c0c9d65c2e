"""Structures of what systems wrote, and what the folding base that makes them is worth.

Inputs: predictions, a folding base, chains of known structure. Outputs: `<results>/structures/` (samples, folded and
scored) and `<results>/folding/{base}/` (the base, judged), with its table and figure.
"""

from loratory.registry import base_families

TRUTHS = [domain for domain in DOMAINS if "folding" in base_families(domain)][:1]  # where true structures are
TRUTH = next(iter(TRUTHS), None)
JUDGED = [STUDY.folding] if STUDY.folding and TRUTH else []


rule fold:
    input:
        predictions=expand("<results>/predictions/data/{{domain}}/{{base}}/seed{seed}.parquet", seed=SEEDS),
        baselines="<results>/predictions/data/{domain}/baselines.parquet",
        folder=ancient(f"<results>/bases/{STUDY.folding}"),
        folding=f"<results>/bases/{STUDY.folding}/base.json",
        references=[f"<results>/data/{TRUTH}/test.parquet"] if TRUTH else [],
    output:
        "<results>/structures/{domain}/{base}/scores.parquet",
        directory("<results>/structures/{domain}/{base}"),
    log:
        "<logs>/fold/{domain}/{base}.log",
    benchmark:
        "<benchmarks>/fold/{domain}/{base}.tsv"
    conda:
        "../../envs/train.yaml"
    threads: STUDY.resources.threads
    resources:
        mem_mb=per_attempt(STUDY.resources.mem_mb),
        runtime=per_attempt(STUDY.resources.runtime),
        attempt=per_attempt(1),
        gpu=STUDY.resources.gpu,
    params:
        predictions=lambda wc, input: by_name(SEEDS, input.predictions),
        folded=STUDY.evaluation.folded,
        max_length=STUDY.evaluation.max_folded_length,
        threads=STUDY.resources.threads,
        device=STUDY.resources.device,
        checkpoints=CHECKPOINTS,
        code=lambda wc: code_digest("evaluation/fold.py", *domain_modules("task", [wc.domain])),
    script:
        "../../scripts/fold.py"


rule assess_folding:
    input:
        folder=ancient("<results>/bases/{base}"),
        base="<results>/bases/{base}/base.json",
        data=f"<results>/data/{TRUTH}/test.parquet",
        audit=f"<results>/data/{TRUTH}/audit.json",
        # of a given base it is not known what it learnt from
        learnt=lambda wc: collect("<results>/general/{domain}/train.parquet", domain=STUDY.bases[wc.base].corpora),
    output:
        residues="<results>/folding/{base}/residues.parquet",
        metrics="<results>/folding/{base}/metrics.json",
    log:
        "<logs>/assess_folding/{base}.log",
    benchmark:
        "<benchmarks>/assess_folding/{base}.tsv"
    conda:
        "../../envs/train.yaml"
    threads: STUDY.resources.threads
    resources:
        mem_mb=per_attempt(STUDY.resources.mem_mb),
        runtime=per_attempt(STUDY.resources.runtime),
        attempt=per_attempt(1),
        gpu=STUDY.resources.gpu,
    params:
        domain=TRUTH,
        dataset=plain(DOMAINS[TRUTH].dataset) if TRUTH else None,
        max_records=STUDY.evaluation.max_records,
        max_length=STUDY.evaluation.max_folded_length,
        resamples=STUDY.evaluation.resamples,
        floor=FLOOR,
        threads=STUDY.resources.threads,
        device=STUDY.resources.device,
        code=code_digest("evaluation/assess.py", *domain_modules("build", TRUTHS), *domain_modules("metrics", TRUTHS)),
    script:
        "../../scripts/assess_folding.py"


rule tabulate_folding:
    input:
        metrics="<results>/folding/{base}/metrics.json",
        base="<results>/bases/{base}/base.json",
    output:
        report(
            "<results>/tables/{base}.folding.html",
            caption="../report/folding.rst",
            category="Folding",
            labels={"base": "{base}", "kind": "table"},
        ),
        multiext("<results>/tables/{base}.folding", ".tsv", ".md", ".tex"),
    log:
        "<logs>/tabulate_folding/{base}.log",
    benchmark:
        "<benchmarks>/tabulate_folding/{base}.tsv"
    conda:
        "../../envs/data.yaml"
    resources:
        mem_mb=per_attempt(500),
        runtime=per_attempt(10),
        attempt=per_attempt(1),
    params:
        banner=BANNER,
        code=code_digest("reporting"),
    script:
        "../../scripts/tabulate_folding.py"


rule draw_calibration:
    input:
        "<results>/folding/{base}/metrics.json",
    output:
        report(
            "<results>/figures/{base}.calibration.svg",
            caption="../report/calibration.rst",
            category="Folding",
            labels={"base": "{base}", "kind": "calibration"},
        ),
    log:
        "<logs>/draw_calibration/{base}.log",
    benchmark:
        "<benchmarks>/draw_calibration/{base}.tsv"
    conda:
        "../../envs/data.yaml"
    resources:
        mem_mb=per_attempt(500),
        runtime=per_attempt(10),
        attempt=per_attempt(1),
    params:
        banner=BANNER,
        code=code_digest("reporting"),
    script:
        "../../scripts/draw_calibration.py"
