"""Predictions → metrics with intervals. Reads files only, so that scores can be made again without any model."""

import platform
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from math import isfinite

import numpy as np
import pyarrow.parquet as pq

import loratory
from loratory import registry
from loratory.data.files import sha256, write_json
from loratory.domains.contract import ROW, Metric
from loratory.domains.dataset import read_split
from loratory.errors import InputError
from loratory.evaluation.bootstrap import distributions, interval, statistic

COLUMNS = ("split", "system", "kind", *ROW)
FILLED = {"nll": "nll", "choice": "p", "text": "text", "sample": "text", "structure": "text"}  # output: its column
RECORDS = {"valid": "valid", "test": "test", "sample": "train"}  # samples are compared with what was learnt from
BASE = "base"
NOT_FOLDED = "not run: no trained folding base"

Runs = dict[int | None, list[dict]]  # the rows of one system and split, in id order, by training seed


def score(domain, base, predictions, baselines, data, task, structures, resamples: int, seed: int, out) -> None:
    """Writes each metric of each system, with 95 % intervals and paired gains over the base, to the JSON file `out`.

    Values are means over training seeds, in raw units; whatever is undefined is null. A gain is positive where the
    system is better than the base, whichever way the metric points. `per_seed` follows `seeds` (null: not run with
    that seed) and is empty for baselines, which have no seed.

    Args:
        predictions: (training seed, parquet file) pairs; rows as `domains.contract.ROW`, with split, system and kind.
        baselines: parquet file of systems that need no language model, or None.
        data: folder of the domain's dataset.
        task: the domain's `Task` options.
        structures: parquet file of folded samples with `seed`, `system`, `id` and a column for each measure (they
            join the sample's row before `metrics.columns` sees it); None if nothing was folded.
        resamples, seed: how many bootstrap draws, and their seed.

    Raises:
        InputError: a file lacks a column, repeats a record, fills an output for some records only, or covers other
            records than the dataset or than the other systems of its split.
    """
    metrics = registry.load("domain", domain, "metrics")
    files = dict(sorted(predictions))
    sources = {**files, **({None: baselines} if baselines else {})}
    folded = read_structures(structures) if structures else None
    resample = partial(distributions, times=resamples, seed=seed)
    rows = []
    for split, systems in sorted(gather(sources, data, folded or {}).items()):
        records = read_split(data, RECORDS[split])
        rows += score_split(metrics, split, systems, records, task, folded is not None, list(files), resample)
    inputs = {f"seed{run}": path for run, path in files.items()} | {
        name: path for name, path in [("baselines", baselines), ("structures", structures)] if path
    }
    report = {
        "domain": domain,
        "base": base,
        "rows": rows,
        "seeds": list(files),
        "resamples": resamples,
        "seed": seed,
        "inputs": {name: sha256(path) for name, path in inputs.items()},
        "versions": {
            "loratory": loratory.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }
    write_json(out, report)


def read_structures(path) -> dict[tuple, dict]:
    """The measures of each folded sample, by (seed, system, id)."""
    keys = ("seed", "system", "id")
    rows = pq.read_table(path).to_pylist()
    return {tuple(row[k] for k in keys): {k: v for k, v in row.items() if k not in keys} for row in rows}


def gather(sources: Mapping, data, measures: Mapping) -> dict[str, dict[str, Runs]]:
    """{split: {system: runs}} of all files, every system of a split with the same records."""
    splits: dict[str, dict[str, Runs]] = {}
    covered = {}
    for run, path in sources.items():
        for (split, system), rows in sorted(read_rows(path).items()):
            ids = [row["id"] for row in rows]
            if split not in covered:
                covered[split] = ids
                known = ids if split == "sample" else [record["id"] for record in read_split(data, split)]
                check_ids(path, split, system, set(ids) - set(known), "records of the dataset")
            strangers = set(ids) ^ set(covered[split])
            check_ids(path, split, system, strangers, "the same records for every system of a split")
            if run is None and system in splits.get(split, {}):
                fix = "give the mixture another name"
                raise InputError(path, "a baseline has the name of a trained system", system, fix=fix)
            rows = [row | measures.get((run, system, row["id"]), {}) for row in rows]
            splits.setdefault(split, {}).setdefault(system, {})[run] = rows
    return splits


def check_ids(path, split: str, system: str, strangers: set, expected: str):
    if strangers:
        what = f"{len(strangers)} records of `{system}` on {split} do not fit, such as this one"
        raise InputError(f"{path}:{min(strangers)}", what, min(strangers), expected, "predict again", "records")


def read_rows(path) -> dict[tuple[str, str], list[dict]]:
    """The rows of each (split, system), in id order."""
    table = pq.read_table(path)
    missing = [column for column in COLUMNS if column not in table.column_names]
    if missing:
        raise InputError(
            path, "columns are missing", ", ".join(missing), ", ".join(COLUMNS), "predict again", "columns"
        )
    found: dict[tuple[str, str], list[dict]] = {}
    for row in sorted(table.to_pylist(), key=lambda row: row["id"]):
        found.setdefault((row["split"], row["system"]), []).append(row)
    for (split, system), rows in found.items():
        for before, row in pairwise(rows):
            if before["id"] == row["id"]:
                what = f"`{system}` has this record twice on {split}"
                raise InputError(
                    f"{path}:{row['id']}", what, row["id"], "one row a record", "predict again", "duplicate_id"
                )
        for column in set(FILLED.values()):
            holes = [row["id"] for row in rows if row[column] is None]
            if holes and len(holes) < len(rows):
                what = f"`{system}` has no `{column}` for {len(holes)} of {len(rows)} records of {split}"
                raise InputError(
                    f"{path}:{holes[0]}", what, holes[0], "all records or none", "predict again", "partial"
                )
    return found


def score_split(
    metrics,
    split: str,
    systems: Mapping[str, Runs],
    records: list[dict],
    task,
    folded: bool,
    seeds: Sequence[int],
    resample: Callable,
) -> list[dict]:
    """One row for each system and metric of a split; see `score`."""
    values, statistics = {}, {}
    for system, runs in systems.items():
        asked = [m for m in metrics.METRICS if offers(m, split, runs) and (folded or m.output != "structure")]
        columns = {run: metrics.columns(rows, records, task) for run, rows in runs.items()} if asked else {}
        for metric in asked:
            values[system, metric.name] = {run: float(metric.value(columns[run])) for run in runs}
            statistics[system, metric.name] = statistic(metric.value, list(columns.values()))
    some_rows = next(iter(next(iter(systems.values())).values()))
    groups = [row["group"] for row in some_rows]
    spreads = resample(statistics, groups)
    scored = []
    for system, runs in sorted(systems.items()):
        kind = next(iter(runs.values()))[0]["kind"]
        for metric in metrics.METRICS:
            if offers(metric, split, runs):
                key, reference = (system, metric.name), (BASE, metric.name)
                scored.append(
                    {"system": system, "kind": kind, "split": split, "n": len(groups), "n_groups": len(set(groups))}
                    | described(metric)
                    | estimate(values.get(key, {}), spreads.get(key), seeds)
                    | gain(metric, values, spreads, key, reference if system != BASE else None)
                )
    return scored


def offers(metric: Metric, split: str, runs: Runs) -> bool:
    """Whether the output that a metric needs is made on this split and was filled by this system."""
    made = (split == "sample") == (metric.output in ("sample", "structure"))
    return made and all(row[FILLED[metric.output]] is not None for rows in runs.values() for row in rows)


def described(metric: Metric) -> dict:
    names = ("unit", "direction", "primary", "note")
    return {"metric": metric.name} | {name: getattr(metric, name) for name in names}


def estimate(values: Mapping, spread, seeds: Sequence[int]) -> dict:
    """The mean over seeds with its interval; `status` says why a number is missing."""
    value = finite(np.mean(list(values.values()))) if values else None
    low, high = map(finite, interval(spread)) if value is not None else (None, None)
    if not values:
        status = NOT_FOLDED
    elif value is None:
        status = "undefined"
    else:
        status = "ok" if low is not None else "no interval"
    seeded = [] if set(values) <= {None} else [finite(values.get(run)) for run in seeds]
    return {"value": value, "low": low, "high": high, "status": status, "per_seed": seeded}


def gain(metric: Metric, values: Mapping, spreads: Mapping, key: tuple, reference: tuple | None) -> dict:
    """How much better than the base, with the interval of the paired difference; null where there is none."""
    if reference not in values or key not in values:
        return {"gain": None, "gain_low": None, "gain_high": None}
    sign = 1 if metric.direction == "up" else -1
    mean, before = (np.mean(list(values[k].values())) for k in (key, reference))
    low, high = interval(sign * (spreads[key] - spreads[reference]))
    return {"gain": finite(sign * (mean - before)), "gain_low": finite(low), "gain_high": finite(high)}


def finite(value) -> float | None:
    return float(value) if value is not None and isfinite(value) else None
