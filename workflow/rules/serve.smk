"""How fast a base answers for many adapters; asked for by name, as its numbers are of the machine.

Inputs: the base and its adapters of `serve_throughput`. Outputs: `<results>/throughput/{base}/`, a file for each number of
adapters, and one table.
"""

SERVED = STUDY.serve_throughput
SERVED_TABLES = [f"<results>/tables/{SERVED.base}.throughput"] if SERVED else []
SERVED_RUNS = (
    {
        f"{name}@{domain}": f"<results>/adapters/{domain}/{SERVED.base}/{name}/seed{SEEDS[0]}/run.json"
        for domain, given in DOMAINS.items()
        for name in given.adapters.get(SERVED.base, ())
    }
    if SERVED
    else {}
)


rule serve_throughput:
    input:
        table_files(SERVED_TABLES),


rule measure_throughput:
    input:
        folder=ancient("<results>/bases/{base}"),
        base="<results>/bases/{base}/base.json",
        adapter_folders=folders_of(SERVED_RUNS.values()),
        adapters=list(SERVED_RUNS.values()),
    output:
        "<results>/throughput/{base}/{number}.json",
    log:
        "<logs>/measure_throughput/{base}/{number}.log",
    benchmark:
        "<benchmarks>/measure_throughput/{base}/{number}.tsv"
    wildcard_constraints:
        number=r"\d+",
    conda:
        "../../envs/train.yaml"
    threads: workflow.resource_settings.cores or STUDY.resources.threads  # nothing else may run beside it
    resources:
        mem_mb=per_attempt(STUDY.resources.mem_mb),
        runtime=per_attempt(STUDY.resources.runtime),
        attempt=per_attempt(1),
        gpu=STUDY.resources.gpu,
    params:
        adapters=lambda wc, input: by_name(SERVED_RUNS, input.adapters),
        asked=plain(SERVED, without=["base", "adapters"]) if SERVED else {},
        threads=STUDY.resources.threads,
        device=STUDY.resources.device,
        code=code_digest("evaluation/throughput.py", "bases"),
    script:
        "../../scripts/measure_throughput.py"


rule tabulate_throughput:
    input:
        measured=[f"<results>/throughput/{{base}}/{number}.json" for number in (SERVED.adapters if SERVED else ())],
        base="<results>/bases/{base}/base.json",
    output:
        report(
            "<results>/tables/{base}.throughput.html",
            caption="../report/throughput.rst",
            category="Serving",
            labels={"base": "{base}", "kind": "throughput"},
        ),
        multiext("<results>/tables/{base}.throughput", ".tsv", ".md", ".tex"),
    log:
        "<logs>/tabulate_throughput/{base}.log",
    benchmark:
        "<benchmarks>/tabulate_throughput/{base}.tsv"
    conda:
        "../../envs/data.yaml"
    resources:
        mem_mb=per_attempt(500),
        runtime=per_attempt(10),
        attempt=per_attempt(1),
    params:
        banner=BANNER,
        code=code_digest("reporting/throughput.py"),
    script:
        "../../scripts/tabulate_throughput.py"
