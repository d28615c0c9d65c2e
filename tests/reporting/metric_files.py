"""Metric files as `evaluation.score` writes them, without computing anything."""

import json

from loratory.training.grid import curve_rows, write_curves
from loratory.training.schedule import Training

DOMAINS = ("speech", "protein")
EXPERTS = ("lora@speech", "lora@protein")
VALUES = {
    "base": 0.5,
    "length_only": 0.52,
    "lora@protein": {"protein": 0.8, "speech": 0.3},
    "lora@speech": {"protein": 0.45, "speech": 0.9},
    "pooled": 0.65,
    "mix:uniform": 0.6,
    "mix:oracle": {"protein": 0.8, "speech": 0.9},
    "mix:shuffled": 0.51,
    "mix": 0.75,
    "other:oracle": 0.5,
    "other": 0.5,
}


def write_runs(path, grids, steps=20):
    """A `runs.parquet` as trainings write it: rates rise and fall by their schedule, and the last step is validated.

    Args:
        grids: {seed: {rate of the grid: validation loss}}.
    """
    rows = []
    for seed, losses in grids.items():
        trials = []
        for rate, valid_loss in losses.items():
            recipe = Training(steps=steps, learning_rate=rate, warmup=0.1)
            curve = [
                {"step": step, "loss": 3 / (step + 1), "scheduled_rate": recipe.learning_rate_at(step)}
                for step in range(steps)
            ]
            curve[-1]["valid_loss"] = valid_loss
            trials.append({"rate": rate, "curve": curve})
        rows += curve_rows(seed, trials)
    write_curves(path, rows)
    return path


def kind(system: str) -> str:
    if system in ("base", "pooled", "length_only"):
        return {"base": "base", "pooled": "control"}.get(system, "baseline")
    return "adapter" if "@" in system else "control" if ":" in system else "mixture"


def metric_row(system, value, split="test", metric="AUC", **other):
    gain = None if system == "base" or value is None else value - 0.5
    spread = {"low": value - 0.05, "high": value + 0.05} if value is not None else {"low": None, "high": None}
    return {
        **{"system": system, "kind": kind(system), "split": split, "metric": metric, "value": value, **spread},
        **{"n": 40, "n_groups": 20, "unit": "0–1", "direction": "up", "primary": metric == "AUC"},
        **{"loss": metric == "log_loss"},
        **{"note": "ties count half", "status": "ok", "per_seed": [value, None, value], "gain": gain},
        **{"gain_low": None if gain is None else gain - 0.03, "gain_high": None if gain is None else gain + 0.03},
        **{"vs_control": None, "vs_control_low": None, "vs_control_high": None},
        **other,
    }


def write_report(path, domain, rows, **other):
    made = {"domain": domain, "base": "mini-lm", "control": None, "rows": rows, "seeds": [0, 1, 2]}
    made |= {"resamples": 1000, "seed": 0}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(made | {"inputs": {}, "versions": {"numpy": "2.0"}} | other))
    return path


def rows_of(domain):
    rows = []
    for system, value in VALUES.items():
        value = value[domain] if isinstance(value, dict) else value
        rows.append(metric_row(system, value))
        if kind(system) in ("base", "adapter"):
            rows.append(metric_row(system, value, "valid"))
        worse = {"direction": "down", "unit": "ratio", "note": "pooled over words, 100 % & more | possible"}
        rows.append(metric_row(system, 1 - value, metric="WER", **worse) | {"gain_low": None, "gain_high": None})
    folded = {"unit": "0–100", "note": "", "status": "not run: no trained folding base", "n": 8, "n_groups": 8}
    return [*rows, metric_row("mix", None, "sample", "pLDDT", **folded)]


def recovered(best="lora@speech", **other) -> dict:
    """What `evaluation.recovery` measures of these systems."""
    rows = []
    for system, value in VALUES.items():
        for domain in DOMAINS:
            gains = [(v[domain] if isinstance(v, dict) else v) - 0.5 for v in (value, VALUES["mix:oracle"])]
            share = {"recovery": gains[0] / gains[1], "recovery_n": 40, "recovery_groups": 20, "recovery_status": "ok"}
            rows.append({"domain": domain, "system": system, "metric": "AUC", "primary": True} | share)
    shares = {s: [row["recovery"] for row in rows if row["system"] == s] for s in VALUES if s != "length_only"}
    means = [
        {"system": system, "recovery": sum(each) / len(each), "over": 2, "domains": 2}
        for system, each in shares.items()
    ]
    return {"rows": rows, "means": means, "loss_means": [], "valid_means": means, "best_single": best} | other


def routed(folder, labels=True, rates=(0.003, 0.01, 0.03), **recovery) -> dict:
    """What a summary needs of its mixture beside the metrics."""
    routes = {"domains": ["protein", "speech"], "top1": {"protein": 0.98, "speech": 0.5}, "learns_labels": labels}
    routes["tokens"] = {"protein": 1234, "speech": 56}
    folder.mkdir(parents=True, exist_ok=True)
    run = {
        "mixer": "xlora",
        "options": {"depth": 1},
        "learning_rate": 0.01 if rates else None,
        "learning_rates": rates,
    }
    (folder / "mixture.json").write_text(json.dumps(run))
    (folder / "told.json").write_text(json.dumps(routes | {"entropy": {"protein": 0.07, "speech": 1.0}}))
    (folder / "recovery.json").write_text(json.dumps(recovered(**recovery)))
    files = {"routing": str(folder / "told.json"), "recovery": str(folder / "recovery.json")}
    return files | {"run": str(folder / "mixture.json")}
