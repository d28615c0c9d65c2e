"""CPU seconds that `snakemake -n` takes on a study of about 4,000 jobs, beside a workflow without anything of ours.

    python benchmarks/dry_run.py

The study: the demo's config with many adapters, each trained on every track of it, and many seeds. The bare workflow:
for each rule of the study one that has as many jobs, with as many inputs, outputs and edges, and with the log,
benchmark, environment and resources that every rule should have; but no config, no library, no parameters. Nothing is
run. Both are asked in turn, three times each.
"""

import json
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from statistics import median
from tempfile import TemporaryDirectory

import yaml
from snakemake.api import SnakemakeApi
from snakemake.settings.types import ConfigSettings, DAGSettings, OutputSettings, Quietness, ResourceSettings

ROOT = Path(__file__).parent.parent
ADAPTERS, SEEDS, MIXTURES, REPEATS = 600, 5, 20, 3
HEAD = """import json

with open("jobs.json") as stream:
    INPUTS = json.load(stream)

rule all:
    default_target: True
    input: INPUTS["all"]["0"]
"""
RULE = """
rule {rule}:
    input: lambda wc: INPUTS["{rule}"][wc.n]
    output: {outputs}
    log: "logs/{rule}/{{n}}.log"
    benchmark: "benchmarks/{rule}/{{n}}.tsv"
    conda: "{ROOT}/envs/data.yaml"
    resources: mem_mb=500, runtime=10
    shell: "touch {{output}}"
"""


def large_study() -> dict:
    study = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    study["adapters"] = {f"lora{rank}": {"method": "lora", "rank": rank} for rank in range(1, ADAPTERS + 1)}
    study["seeds"] = list(range(SEEDS))
    for domain in study["domains"].values():
        domain["adapters"] = {base: list(study["adapters"]) for base in domain.get("adapters", ())}
    mixture = study["mixtures"]["xlora"]
    experts = [dict.fromkeys(mixture["experts"], f"lora{i + 1}") for i in range(MIXTURES)]
    study["mixtures"] = {f"xlora{i}": mixture | {"experts": chosen} for i, chosen in enumerate(experts)}
    return study


def planned_jobs(config: Path, folder: Path) -> list[tuple[str, list[str], list[str]]]:
    """(rule, inputs, outputs) of each job of the study."""
    quiet = OutputSettings(quiet={Quietness.ALL}, enable_file_logging=False, dryrun=True)
    with SnakemakeApi(quiet) as api:
        settings = ConfigSettings(configfiles=[config])
        flow = api.workflow(
            ResourceSettings(cores=1), settings, snakefile=ROOT / "workflow" / "Snakefile", workdir=folder
        )
        flow.dag(DAGSettings()).execute_workflow(executor="dryrun")
        return [
            (job.rule.name, [str(path) for path in job.input], [str(path) for path in job.output])
            for job in flow._workflow.dag.jobs
        ]


def write_bare(jobs: list[tuple[str, list[str], list[str]]], folder: Path) -> None:
    """A Snakefile with as many jobs, files and edges, and `jobs.json`, which says what each job reads."""
    numbers: Counter[str] = Counter()
    made: dict[str, str] = {}  # path in the study: path here
    numbered = []
    for rule, inputs, outputs in jobs:
        numbered.append((rule, str(numbers[rule]), inputs))
        made |= {path: f"{rule}/{numbers[rule]}/{place}" for place, path in enumerate(outputs)}
        numbers[rule] += 1
    reads: dict[str, dict[str, list[str]]] = defaultdict(dict)
    for rule, number, inputs in numbered:
        reads[rule][number] = [made.get(path, str(ROOT / path)) for path in inputs]
    (folder / "jobs.json").write_text(json.dumps(reads))
    outputs_of = {rule: len(outputs) for rule, _, outputs in jobs if outputs}
    rules = [
        RULE.format(ROOT=ROOT, rule=rule, outputs=", ".join(f'"{rule}/{{n}}/{place}"' for place in range(count)))
        for rule, count in outputs_of.items()
    ]
    (folder / "Snakefile").write_text(HEAD + "".join(rules))


def plan_cost(command: list[str]) -> tuple[int, float]:
    """(Jobs, CPU seconds) of a dry run."""
    before = getrusage(RUSAGE_CHILDREN)
    printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    after = getrusage(RUSAGE_CHILDREN)
    jobs = next(int(line.split()[1]) for line in printed.splitlines() if line.startswith("total"))
    return jobs, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    with TemporaryDirectory() as folder:
        ours, bare = Path(folder, "ours"), Path(folder, "bare")
        ours.mkdir()
        bare.mkdir()
        config = ours / "config.yaml"
        config.write_text(yaml.safe_dump(large_study()))
        jobs = planned_jobs(config, ours)
        write_bare(jobs, bare)
        plain = [sys.executable, "-m", "snakemake", "-n", "-q", "rules", "--workflow-profile", "none", "--cores", "1"]
        commands = {
            "this study": [*plain, "-d", str(ours), "--configfile", str(config)],
            "bare Snakemake": [*plain, "-d", str(bare), "-s", str(bare / "Snakefile")],
        }
        seconds: dict[str, list[float]] = defaultdict(list)
        for _ in range(REPEATS):
            for name, command in commands.items():
                found, spent = plan_cost(command)
                assert found == len(jobs), (name, found, len(jobs))
                seconds[name].append(spent)
    files = sum(len(inputs) + len(outputs) for _, inputs, outputs in jobs)
    print(f"{len(jobs)} jobs with {files} inputs and outputs; CPU seconds, median of {REPEATS}:")
    for name, spent in seconds.items():
        print(f"{name}: {median(spent):.1f} ({', '.join(f'{value:.1f}' for value in spent)})")
    print(f"ratio: {median(seconds['this study']) / median(seconds['bare Snakemake']):.2f}")


if __name__ == "__main__":
    main()
