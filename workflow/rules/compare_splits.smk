"""One adapter under several ways to split the same data: how much of a score is leakage.

Inputs: metrics, audits and cards of the entries of `compare_splits`. Output: one table.
"""

LADDER = STUDY.compare_splits
SPLIT_TABLES = [f"<results>/tables/{LADDER.base}.splits"] if LADDER else []


rule compare_splits:
    input:
        table_files(SPLIT_TABLES),


rule tabulate_splits:
    input:
        metrics=collect("<results>/metrics/data/{domain}/{{base}}.json", domain=LADDER.entries if LADDER else []),
        audits=collect("<results>/data/{domain}/audit.json", domain=LADDER.entries if LADDER else []),
        cards=collect("<results>/data/{domain}/card.json", domain=LADDER.entries if LADDER else []),
        base="<results>/bases/{base}/base.json",
    output:
        report(
            "<results>/tables/{base}.splits.html",
            caption="../report/splits.rst",
            category="Splits",
            labels={"base": "{base}", "kind": "table"},
        ),
        multiext("<results>/tables/{base}.splits", ".tsv", ".md", ".tex"),
    log:
        "<logs>/tabulate_splits/{base}.log",
    benchmark:
        "<benchmarks>/tabulate_splits/{base}.tsv"
    conda:
        "../../envs/data.yaml"
    resources:
        mem_mb=per_attempt(500),
        runtime=per_attempt(10),
        attempt=per_attempt(1),
    params:
        entries=lambda wc, input: {
            name: {"metrics": str(metrics), "audit": str(audit), "card": str(card)}
            for name, metrics, audit, card in zip(LADDER.entries, input.metrics, input.audits, input.cards)
        },
        adapter=LADDER and LADDER.adapter,
        banner=BANNER,
        code=code_digest("reporting/splits.py"),
    script:
        "../../scripts/tabulate_splits.py"
