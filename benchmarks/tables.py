"""Seconds that tables of 1,000 runs take, from a start of Python to written files, and whether torch was imported.

    python benchmarks/tables.py

A domain's table of 1,000 systems with 20 metrics each, and the two tables of 200 methods with five seeds each. Each is
written twice: equal files must come out.
"""

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

ROOT = Path(__file__).parent.parent
SYSTEMS, METRICS, METHODS, SEEDS = 1000, 20, 200, 5
DOMAIN = "from loratory.reporting.tables import write_domain_table\nwrite_domain_table(['metrics.json'], '{out}')"
METHOD = """import json
from loratory.reporting.methods import write_method_tables
runs = json.load(open('runs.json'))
write_method_tables(['contrast.json'], runs, '{out}', '{out}.costs')"""
TORCH = "\nimport sys\nsys.exit('torch' in sys.modules)"


def metric_row(system: str, kind: str, number: int, metric: int) -> dict:
    value = 0.5 + (number * 7 + metric) % 100 / 1000
    numbers = dict.fromkeys(("low", "gain", "gain_low"), value - 0.01)
    numbers |= dict.fromkeys(("vs_control", "vs_control_low", "vs_control_high"))
    return {
        **{"system": system, "kind": kind, "split": "test", "metric": f"metric_{metric}", "value": value, "note": ""},
        **{"high": value + 0.01, "gain_high": 0.02, "n": 150, "n_groups": 50, "unit": "", "direction": "up"},
        **{"primary": metric == 0, "loss": metric == 1, "status": "ok", "per_seed": [value] * SEEDS, **numbers},
    }


def write_metrics(folder: Path) -> None:
    systems = [("base", "base"), *((f"lora{n}@d", "adapter") for n in range(1, SYSTEMS))]
    rows = [metric_row(*system, n, metric) for n, system in enumerate(systems) for metric in range(METRICS)]
    report = {"domain": "d", "base": "b", "control": None, "rows": rows, "seeds": [*range(SEEDS)], "resamples": 1000}
    (folder / "metrics.json").write_text(json.dumps(report))


def write_runs(folder: Path) -> None:
    names = [f"lora{n}" for n in range(METHODS)]
    unpaired = dict.fromkeys(f"{of}{part}" for of in ("difference", "vs_svd") for part in ("", "_low", "_high"))
    rows = [metric_row("base", "base", 0, 0) | unpaired | {"adapter": "base"}]
    rows += [metric_row(f"{name}@d", "adapter", n, 0) | unpaired | {"adapter": name} for n, name in enumerate(names)]
    contrast = {"domain": "d", "base": "b", "against": "lora0", "control": None, "cuts": {}, "rows": rows}
    (folder / "contrast.json").write_text(json.dumps(contrast | {"seeds": [*range(SEEDS)], "resamples": 1000}))
    costs = ("num_trainable_params", "num_stored_params", "optimizer_state", "accelerator_memory_max", "flops")
    costs += ("adapted_modules", "positions", "other_positions", "train_time", "targets")
    pairs = []
    for name in names:
        info = {
            "train_config": {"learning_rates": [0.001, 0.01]},
            "peft_config": {"method": "lora"},
            "total_time": 1.5,
        }
        run = {"domain": "d", "base": "b", "base_sha256": "", "learning_rate": 0.01, "run_info": info}
        run |= {"train_info": dict.fromkeys(costs, 1000), "meta_info": {"dataset_info": {"sha256": [""]}}}
        for seed in range(SEEDS):
            path = folder / f"{name}-{seed}.json"
            path.write_text(json.dumps(run | {"seed": seed}))
            pairs.append((name, str(path)))
    (folder / "runs.json").write_text(json.dumps(pairs))


def time_program(program: str, out: str, folder: Path) -> tuple[float, bool]:
    """Seconds from start to end, and whether torch was imported."""
    command = [sys.executable, "-c", program.format(out=out) + TORCH]
    started = perf_counter()
    done = subprocess.run(command, cwd=folder, env={"PYTHONPATH": str(ROOT / "scripts")})
    return perf_counter() - started, bool(done.returncode)


def main() -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_metrics(folder)
        write_runs(folder)
        for title, program in {f"{SYSTEMS} systems": DOMAIN, f"{METHODS * SEEDS} runs": METHOD}.items():
            times, torch = zip(*(time_program(program, out, folder) for out in ("first", "second")))
            ends = (".tsv", ".md", ".tex", ".html")
            equal = all(
                (folder / f"first{end}").read_bytes() == (folder / f"second{end}").read_bytes() for end in ends
            )
            print(f"{title}: {min(times):.2f} s, torch {any(torch)}, equal files {equal}")


if __name__ == "__main__":
    main()
