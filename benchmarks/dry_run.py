"""Seconds that `snakemake -n` takes on a study of about 4,000 jobs.

    python benchmarks/dry_run.py

The demo's config with many adapters, each trained on every track of it, and many seeds. Nothing is run.
"""

import subprocess
import sys
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from tempfile import TemporaryDirectory
from time import perf_counter

import yaml

ROOT = Path(__file__).parent.parent
ADAPTERS, SEEDS, MIXTURES = 600, 5, 20


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


def main() -> None:
    with TemporaryDirectory() as folder:
        config = Path(folder, "config.yaml")
        config.write_text(yaml.safe_dump(large_study()))
        command = [sys.executable, "-m", "snakemake", "-n", "-q", "rules", "-d", folder, "--configfile", str(config)]
        started = perf_counter()
        told = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
        seconds = perf_counter() - started
    jobs = next(line.split()[1] for line in told.splitlines() if line.startswith("total"))
    memory = getrusage(RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"{jobs} jobs: {seconds:.1f} s, {memory:.0f} MB")


if __name__ == "__main__":
    main()
