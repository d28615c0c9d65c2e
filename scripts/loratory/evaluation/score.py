"""Predictions → metrics with intervals. Reads files only, so that scores can be made again without any model."""

import platform
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from math import isfinite
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

import loratory
from loratory import registry
from loratory.data.files import file_sha256, write_json
from loratory.domains.contract import ROW, Columns, Metric, TaskOptions
from loratory.domains.dataset import read_split
from loratory.errors import InputError
from loratory.evaluation.bootstrap import bootstrap_distributions, percentile_interval, row_statistic

COLUMNS = ("split", "system", "kind", *ROW)
OUTPUT_COLUMNS = {
    "nll": "nll",
    "choice": "p",
    "text": "text",
    "sample": "text",
    "structure": "text",
    "rank": "above",
}  # output: its column
RECORDS = {"valid": "valid", "test": "test", "rank": "test", "sample": "train"}  # samples: what was learnt from
APART = {"sample": "sample", "structure": "sample", "rank": "rank"}  # splits of outputs that are not made on records
BASE = "base"
NOT_FOLDED = "not run: no trained folding base"
CONTROL = "vs_control"  # fields of what a system gains over the best control without a language model

Runs = dict[int | None, list[dict]]  # the rows of one system and split, in id order, by training seed


class CellSize(NamedTuple):
    """What a number is computed on: records and groups of them, and those of the rarest class that it tells apart."""

    n: int
    n_groups: int
    n_class: int
    n_class_groups: int


@dataclass(frozen=True)
class Floor:
    """How few records, and groups of them, a number may be computed on."""

    records: int
    groups: int

    def shortage_status(self, size: CellSize) -> str:
        """The status of a cell that is not printed; "" if it may be, or if there is nothing to print."""
        if 0 < size.n < self.records:
            return f"n < {self.records}: too few records"
        if 0 < size.n_groups < self.groups:
            return f"groups < {self.groups}: too few groups of records"
        if 0 < size.n_class < self.records:
            return f"class n < {self.records}: too few records of a class"
        if 0 < size.n_class_groups < self.groups:
            return f"class groups < {self.groups}: too few groups of records of a class"
        return ""


def score_domain(
    domain: str,
    base: str,
    predictions: Mapping[int, Path | str],
    baselines: Path | str | None,
    data: Path | str,
    task: Any,
    structures: Path | str | None,
    resamples: int,
    seed: int,
    floor: Floor,
    out: Path | str,
) -> None:
    """Writes each metric of each system, with 95 % intervals and paired gains over the base, to the JSON file `out`.

    Values are means over training seeds, in raw units; whatever is undefined is null. `n` and `n_groups` count the
    records that a metric looks at, `n_class` and `n_class_groups` those of its rarest class (of all, without classes):
    the fewest in any run. A gain is positive where the system is better than the base, whichever way a metric points;
    `vs_control` is the same over the baseline named in `control`, which `choose_control` chose.
    `per_seed` follows `seeds` (null: not run with that seed) and is empty for baselines, which have no seed.
    `metrics_version` is the domain's `VERSION`.

    Args:
        predictions: {training seed: parquet file}; rows as `domains.contract.ROW`, with split, system and kind.
        baselines: parquet file of systems that need no language model, or None.
        data: folder of the domain's dataset.
        task: the domain's `Task` options.
        structures: parquet file of folded samples with `seed`, `system`, `id` and a column for each measure (they
            join the sample's row before `metrics.columns` reads it); None if nothing was folded.
        resamples, seed: how many bootstrap draws, and their seed.
        floor: on fewer records or groups nothing is computed, and `status` says so.

    Raises:
        InputError: a file lacks a column, repeats a record, fills an output for some records only, or covers other
            records than the dataset or than the other systems of its split.
    """
    metrics = load_metrics(domain, task)
    files = dict(sorted(predictions.items()))
    folded = read_structures(structures) if structures else None
    resample = partial(bootstrap_distributions, times=resamples, seed=seed)
    splits = gather_runs(add_baselines(files, baselines), data, folded or {})
    control = choose_control(metrics, splits, data, task)
    common = {"task": task, "folded": folded is not None, "seeds": list(files), "floor": floor, "resample": resample}
    rows, learnt = [], train_values(data, metrics.TRAIN_KEYS)
    for split, systems in sorted(splits.items()):
        records = mark_known_values(read_split(data, RECORDS[split]), learnt)
        rows += score_split(metrics, split, systems, records, control=control["system"] if control else None, **common)
    inputs = {f"seed{run}": path for run, path in files.items()} | {
        name: path for name, path in [("baselines", baselines), ("structures", structures)] if path
    }
    report = {
        "domain": domain,
        "base": base,
        "metrics_version": metrics.VERSION,
        "control": control,
        "unseen": unseen_counts(read_split(data, "test"), learnt) if learnt else {},
        "too_long": count_too_long(splits.get("test", {})),
        "rows": rows,
        "seeds": list(files),
        "resamples": resamples,
        "seed": seed,
        "inputs": {name: file_sha256(path) for name, path in inputs.items()},
        "versions": {
            "loratory": loratory.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        }
        | registry.outside_packages(domain=domain),
    }
    write_json(out, report)


def train_values(data: Path | str, names: Sequence[str]) -> dict[str, set]:
    """{column: its values in train}."""
    table = pq.read_table(Path(data, "train.parquet"), columns=list(names)) if names else None
    return {name: {*table[name].to_pylist()} for name in names} if table else {}


def mark_known_values(records: list[dict], learnt: Mapping[str, set]) -> list[dict]:
    """The records with `known_{column}`: 1 where train holds their value of it, else 0."""
    return [
        record | {f"known_{name}": int(record[name] in values) for name, values in learnt.items()}
        for record in records
    ]


def unseen_counts(test: list[dict], learnt: Mapping[str, set]) -> dict[str, dict[str, int]]:
    """{column: how many values of test train has never seen, of how many, in how many records}."""
    found = {}
    for name, values in learnt.items():
        new = [record[name] for record in test if record[name] not in values]
        found[name] = {"values": len({*new}), "of": len({record[name] for record in test}), "records": len(new)}
    return found


def count_too_long(systems: Mapping[str, Runs]) -> int:
    """How many records have a reference that is longer than may be written."""
    rows = (row for runs in systems.values() for own in runs.values() for row in own)
    return len({row["id"] for row in rows if row.get("too_long")})


def add_baselines(files: Mapping[int, Path | str], baselines: Path | str | None) -> dict[int | None, Path | str]:
    """{training seed: its file}, with the file of controls, which have no seed, under None."""
    pairs: list[tuple[int | None, Path | str]] = [*files.items()]
    return dict([*pairs, (None, baselines)] if baselines else pairs)


def read_structures(path: Path | str) -> dict[tuple, dict]:
    """The measures of each folded sample, by (seed, system, id)."""
    keys = ("seed", "system", "id")
    rows = pq.read_table(path).to_pylist()
    return {tuple(row[k] for k in keys): {k: v for k, v in row.items() if k not in keys} for row in rows}


def gather_runs(
    sources: Mapping[int | None, Path | str], data: Path | str, measures: Mapping
) -> dict[str, dict[str, Runs]]:
    """{split: {system: runs}} of all files, every system of a split with the same records."""
    splits: dict[str, dict[str, Runs]] = {}
    covered = {}
    for run, path in sources.items():
        for (split, system), rows in sorted(read_rows(path).items()):
            ids = [row["id"] for row in rows]
            if split not in covered:
                covered[split] = ids
                known = ids if split == "sample" else [record["id"] for record in read_split(data, RECORDS[split])]
                check_ids(path, split, system, set(ids) - set(known), "records of the dataset")
            strangers = set(ids) ^ set(covered[split])
            check_ids(path, split, system, strangers, "the same records for every system of a split")
            if run is None and system in splits.get(split, {}):
                fix = "give the mixture another name"
                raise InputError(path, "a baseline has the name of a trained system", system, fix=fix)
            rows = [row | measures.get((run, system, row["id"]), {}) for row in rows]
            splits.setdefault(split, {}).setdefault(system, {})[run] = rows
    return splits


def check_ids(path: Path | str, split: str, system: str, strangers: set, expected: str) -> None:
    if strangers:
        what = f"{len(strangers)} records of `{system}` on {split} do not fit, such as this one"
        raise InputError(f"{path}:{min(strangers)}", what, min(strangers), expected, "predict again", "records")


def read_rows(path: Path | str) -> dict[tuple[str, str], list[dict]]:
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
        for column in set(OUTPUT_COLUMNS.values()):
            holes = [row["id"] for row in rows if row.get(column) is None]
            if holes and len(holes) < len(rows):
                what = f"`{system}` has no `{column}` for {len(holes)} of {len(rows)} records of {split}"
                raise InputError(
                    f"{path}:{holes[0]}", what, holes[0], "all records or none", "predict again", "partial"
                )
    return found


def choose_control(metrics: Any, splits: Mapping[str, Mapping[str, Runs]], data: Path | str, task: Any) -> dict | None:
    """The baseline that is best by the primary metric on valid; on test, which favours it, if none answered there.

    Returns:
        `system`, and the `split` that it was chosen on; None where no baseline has a value.
    """
    metric = primary_metric(metrics)
    for split in ("valid", "test"):
        baselines = {name: runs for name, runs in sorted(splits.get(split, {}).items()) if None in runs}
        records = read_split(data, split) if baselines else []
        values = {
            name: metric.compute_value(metrics.columns(runs[None], records, task))
            for name, runs in baselines.items()
            if has_output(metric, split, runs)
        }
        defined = {name: value * metric.sign for name, value in values.items() if isfinite(value)}
        if defined:
            return {"system": max(defined, key=lambda name: defined[name]), "split": split}
    return None


def load_metrics(domain: str, task: TaskOptions | None) -> Any:
    """A domain's metrics, those alone that belong to the question that its task puts."""
    module = registry.load_module("domain", domain, "metrics")
    question = task.question if task else ""
    metrics = tuple(metric for metric in module.METRICS if not metric.questions or question in metric.questions)
    names = {"METRICS": metrics, "VERSION": module.VERSION, "TRAIN_KEYS": module.TRAIN_KEYS}
    return SimpleNamespace(**names, columns=module.columns)


def primary_metric(metrics: Any) -> Metric:
    return next(metric for metric in metrics.METRICS if metric.primary)


def compared_metrics(metrics: Any) -> list[Metric]:
    """The metrics that systems are compared by: the primary one, and what learning rates are chosen by."""
    return [primary_metric(metrics), *(metric for metric in metrics.METRICS if metric.loss and not metric.primary)]


def score_split(
    metrics: Any,
    split: str,
    systems: Mapping[str, Runs],
    records: list[dict],
    *,
    task: Any,
    folded: bool,
    seeds: Sequence[int],
    control: str | None,
    floor: Floor,
    resample: Callable,
) -> list[dict]:
    """One row for each system and metric of a split; see `score_domain`."""
    some_rows = next(iter(next(iter(systems.values())).values()))
    groups = np.array([row["group"] for row in some_rows])
    values, statistics, sizes, missing = {}, {}, {}, {}
    columns: dict[str, dict] = {}
    parts: dict[str, Metric] = {}
    for system, runs in systems.items():
        asked = [m for m in metrics.METRICS if has_output(m, split, runs) and (folded or m.output != "structure")]
        columns[system] = {run: metrics.columns(rows, records, task) for run, rows in runs.items()} if asked else {}
        parts |= {part.name: part for m in asked for part in metric_parts(m, columns[system].values(), floor.records)}
    every = [*metrics.METRICS, *(parts[name] for name in sorted(parts))]
    for system, runs in systems.items():
        for metric in every:
            if not has_output(metric, split, runs) or not (folded or metric.output != "structure"):
                continue
            key, own = (system, metric.name), columns[system]
            sizes[key] = cell_size(metric, groups, own.values())
            missing[key] = floor.shortage_status(sizes[key])
            if not missing[key]:
                values[key] = {run: metric.compute_value(each) for run, each in own.items()}
                statistics[key] = row_statistic(metric.value, list(own.values()), metric.where)
    spreads = resample(statistics, groups)
    scored = []
    for system, runs in sorted(systems.items()):
        kind = next(iter(runs.values()))[0]["kind"]
        for metric in every:
            if has_output(metric, split, runs):
                key = system, metric.name
                size = sizes.get(key, CellSize(*2 * sample_size(groups)))
                scored.append(
                    {"system": system, "kind": kind, "split": split, **size._asdict()}
                    | metric_columns(metric)
                    | estimate_columns(values.get(key, {}), spreads.get(key), seeds, missing.get(key, NOT_FOLDED))
                    | gain_columns(metric, values, spreads, key, (BASE, metric.name))
                    | gain_columns(metric, values, spreads, key, (control, metric.name), CONTROL)
                )
    return scored


def metric_parts(metric: Metric, columns: Iterable[Columns], fewest: int) -> list[Metric]:
    """The metric of the rows of each name by which it is told apart (`Metric.each`), if enough of them count."""
    if metric.each is None:
        return []
    found = []
    for each in columns:
        names, sizes = np.unique(metric.each(each)[metric.row_selection(each)], return_counts=True)
        found.append({name for name, size in zip(names.tolist(), sizes) if size >= fewest})
    return [metric_part(metric, name) for name in sorted(set.intersection(*found))] if found else []


def metric_part(metric: Metric, name: str) -> Metric:
    each, where = metric.each, metric.where
    assert each is not None

    def is_part(columns: Columns) -> np.ndarray:
        own = each(columns) == name
        return own & where(columns) if where else own

    label = f"{metric.name}: {name}"
    return replace(metric, name=label, where=is_part, primary=False, loss=False, classes=None, each=None, note="")


def sample_size(groups: np.ndarray) -> tuple[int, int]:
    """How many records, in how many groups."""
    return len(groups), len(set(groups.tolist()))


def cell_size(metric: Metric, groups: np.ndarray, columns: Iterable[Mapping]) -> CellSize:
    """What a metric looks at: each count in the run where it is the smallest."""
    sizes = [selected_size(metric, groups, each) for each in columns]
    return CellSize(*(min(counts) for counts in zip(*sizes)))


def selected_size(metric: Metric, groups: np.ndarray, columns: Mapping) -> CellSize:
    rows = metric.row_selection(columns)
    chosen = groups[rows]
    of_row = metric.classes(columns)[rows] if metric.classes else np.zeros(len(chosen))
    classes = [sample_size(chosen[of_row == each]) for each in np.unique(of_row)] or [(0, 0)]
    return CellSize(*sample_size(chosen), *(min(counts) for counts in zip(*classes)))


def has_output(metric: Metric, split: str, runs: Runs) -> bool:
    """Whether the output that a metric needs is made on this split and was filled by this system."""
    made = APART.get(metric.output, split) == split and (split not in APART.values() or metric.output in APART)
    column = OUTPUT_COLUMNS[metric.output]
    return made and all(row.get(column) is not None for rows in runs.values() for row in rows)


def metric_columns(metric: Metric) -> dict:
    names = ("unit", "direction", "primary", "loss", "note")
    return {"metric": metric.name} | {name: getattr(metric, name) for name in names}


def estimate_columns(values: Mapping, spread: np.ndarray | None, seeds: Sequence[int], missing: str = "") -> dict:
    """The mean over seeds with its interval; `status` says why a number is missing, `missing` why there are none."""
    value = finite_or_none(np.mean(list(values.values()))) if values else None
    interval = percentile_interval(spread) if value is not None and spread is not None else (None, None)
    low, high = map(finite_or_none, interval)
    if not values:
        status = missing
    elif value is None:
        status = "undefined"
    else:
        status = "ok" if low is not None else "no interval"
    seeded = [] if set(values) <= {None} else [finite_or_none(values.get(run)) for run in seeds]
    return {"value": value, "low": low, "high": high, "status": status, "per_seed": seeded}


def gain_columns(
    metric: Metric, values: Mapping, spreads: Mapping, key: Hashable, reference: Hashable, name: str = "gain"
) -> dict:
    """How much better than another system, with the interval of the paired difference, as `{name}`, `{name}_low` and
    `{name}_high`; null where there is no other."""
    if reference not in values or key not in values or key == reference:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    mean, before = (np.mean(list(values[k].values())) for k in (key, reference))
    low, high = percentile_interval(metric.sign * (spreads[key] - spreads[reference]))
    return {
        name: finite_or_none(metric.sign * (mean - before)),
        f"{name}_low": finite_or_none(low),
        f"{name}_high": finite_or_none(high),
    }


def finite_or_none(value: float | None) -> float | None:
    return float(value) if value is not None and isfinite(value) else None
