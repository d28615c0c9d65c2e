"""Predictions → how systems differ on the primary metric of a domain, and on what learning rates are chosen by.

First of all the adapters of one domain.

Unlike `evaluation.score`, which speaks of what was trained as it is, this speaks of what trained it: each draw takes
whole groups of test records and, again with replacement, training seeds. All systems see the same draws, so that
differences are paired. With few seeds such intervals are still too narrow.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loratory import registry
from loratory.data.files import file_sha256, write_json
from loratory.domains.contract import Columns, Metric
from loratory.domains.dataset import read_split
from loratory.evaluation.bootstrap import bootstrap_distributions, row_statistic
from loratory.evaluation.score import (
    BASE,
    CONTROL,
    CellSize,
    Floor,
    add_baselines,
    cell_size,
    choose_control,
    compared_metrics,
    estimate_columns,
    gain_columns,
    gather_runs,
    load_metrics,
    metric_columns,
)

SPLIT = "test"


@dataclass(frozen=True)
class PairedComparison:
    """Some systems on the same records of one split, by one metric.

    Attributes:
        sizes: {system: what its value is computed on}, of all systems.
        missing: {system: why nothing is computed}, of systems below the floor.
        values: {system: {training seed: value}}, of systems above the floor.
        spreads: {system: (resamples,) means over drawn seeds of drawn groups}, the same draws for all of them.
        seeds: training seeds, in order.
        control: as of `score.choose_control`; it is one of the systems.
        version: of the domain's metrics.
    """

    metric: Metric
    split: str
    sizes: dict[str, CellSize]
    missing: dict[str, str]
    values: dict[str, dict]
    spreads: dict[str, np.ndarray]
    seeds: list[int]
    control: dict | None = None
    version: int = 1

    def score_row(self, system: str) -> dict:
        """As a row of `evaluation.score`, with the gains over the base and over the control."""
        known = {"system": system, "split": self.split, **self.sizes[system]._asdict(), **metric_columns(self.metric)}
        missing = self.missing.get(system, "")
        known |= estimate_columns(self.values.get(system, {}), self.spreads.get(system), self.seeds, missing)
        control = self.control["system"] if self.control else None
        return known | self.gain_over(system, BASE) | self.gain_over(system, control, CONTROL)

    def gain_over(self, system: str, than: str | None, name: str = "gain") -> dict:
        """As `score.gain_columns`."""
        return gain_columns(self.metric, self.values, self.spreads, system, than, name)

    def gain_draws(self, system: str) -> np.ndarray:
        """(resamples,) gains over the base, above 0 where the system is better."""
        return self.metric.sign * (self.spreads[system] - self.spreads[BASE])


def compare_systems(
    domain: str,
    files: Mapping[int, Path | str],
    data: Path | str,
    task: Any,
    split: str,
    chosen: Callable[[str], bool],
    resamples: int,
    seed: int | Sequence[int],
    floor: Floor,
    baselines: Path | str | None = None,
) -> list[PairedComparison]:
    """Compares the systems that are `chosen` by their names, and the best control without a language model.

    Returns:
        A comparison for each of `score.compared_metrics`, the primary one first; all see the same draws.

    Args:
        files: {training seed: parquet file of predictions}, in order.
        baselines: parquet file of controls without a language model; None: they are left out.
        data: folder of the domain's dataset. task: the domain's `Task` options.
        resamples, seed: how many bootstrap draws, and a seed, or several numbers that are one, of the drawn groups;
            the drawn training seeds depend on its first number alone, so that they are the same in all domains.
        floor: as of `score.score_domain`.

    Raises:
        InputError: as `evaluation.score`.
    """
    metrics = load_metrics(domain, task)
    splits = gather_runs(add_baselines(files, baselines), data, {})
    control = choose_control(metrics, splits, data, task)
    wanted = {name for name in splits[split] if chosen(name)} | ({control["system"]} if control else set())
    systems = {name: runs for name, runs in splits[split].items() if name in wanted}
    records = read_split(data, split)
    groups = np.array([row["group"] for row in next(iter(next(iter(systems.values())).values()))])
    columns = {
        name: {run: metrics.columns(rows, records, task) for run, rows in runs.items()}
        for name, runs in systems.items()
    }
    return [
        compare_columns(metric, split, columns, groups, resamples, seed, floor, list(files), control, metrics.VERSION)
        for metric in compared_metrics(metrics)
    ]


def compare_columns(
    metric: Metric,
    split: str,
    columns: Mapping[str, Mapping[int | None, Columns]],
    groups: np.ndarray,
    resamples: int,
    seed: int | Sequence[int],
    floor: Floor,
    seeds: list[int],
    control: dict | None,
    version: int,
) -> PairedComparison:
    """A comparison by one metric of {system: {training seed: its prediction columns}}."""
    sizes = {name: cell_size(metric, groups, runs.values()) for name, runs in columns.items()}
    missing = {name: status for name, size in sizes.items() if (status := floor.shortage_status(size))}
    shown = {name: runs for name, runs in columns.items() if name not in missing}
    values = {name: {run: metric.compute_value(each) for run, each in runs.items()} for name, runs in shown.items()}
    statistics = {
        (name, run): row_statistic(metric.value, [each], metric.where)
        for name, runs in shown.items()
        for run, each in runs.items()
    }
    spreads = bootstrap_distributions(statistics, groups, resamples, seed)
    over = {name: seed_distribution(spreads, name, list(runs), np.atleast_1d(seed)[0]) for name, runs in shown.items()}
    return PairedComparison(metric, split, sizes, missing, values, over, seeds, control, version)


def contrast_methods(
    domain: str,
    base: str,
    predictions: Mapping[int, Path | str],
    baselines: Path | str | None,
    data: Path | str,
    task: Any,
    against: str,
    resamples: int,
    seed: int,
    floor: Floor,
    out: Path | str,
    cuts: Mapping[str, Mapping[str, str | None]] | None = None,
) -> None:
    """Writes a row for the base, each adapter of the domain and the best control to the JSON file `out`.

    By the primary metric and, where it is another one, by what learning rates are chosen by. A row is one of
    `evaluation.score` with the name of its `adapter` (or of the control), and with `difference`, `difference_low` and
    `difference_high`: how much better it is than the adapter `against`. `vs_svd` and its interval say the same of an
    adapter at a lower rank and its control; null in all other rows.

    Args:
        predictions: {training seed: parquet file}.
        cuts: {adapter: {its name at a lower rank: that of a plain LoRA cut by SVD, or None}}; it is written too.
        baselines, data, task, resamples, seed, floor: as of `compare_systems`.

    Raises:
        InputError: as `evaluation.score`, or the predictions lack `against`.
    """
    files, reference = dict(sorted(predictions.items())), f"{against}@{domain}"
    own = lambda name: is_own(name, domain)  # noqa: E731
    found = compare_systems(domain, files, data, task, SPLIT, own, resamples, seed, floor, baselines)
    first, *_ = found
    if reference not in first.sizes:
        raise registry.unknown_name_error(next(iter(files.values())), "system", reference, first.sizes)
    controls = {
        f"{name}@{domain}": f"{svd}@{domain}" for of in (cuts or {}).values() for name, svd in of.items() if svd
    }
    rows = [
        of.score_row(name)
        | {"adapter": name.removesuffix(f"@{domain}")}
        | of.gain_over(name, reference, "difference")
        | of.gain_over(name, controls.get(name), "vs_svd")
        for of in found
        for name in of.sizes
    ]
    report = {"domain": domain, "base": base, "metrics_version": first.version, "against": against}
    report |= {"control": first.control, "cuts": cuts or {}, "rows": rows}
    report |= {"seeds": list(files), "resamples": resamples, "seed": seed, "inputs": file_digests(files, baselines)}
    write_json(out, report)


def file_digests(files: Mapping[int, Path | str], baselines: Path | str | None = None) -> dict[str, str]:
    named = {f"seed{run}": path for run, path in files.items()} | ({"baselines": baselines} if baselines else {})
    return {name: file_sha256(path) for name, path in named.items()}


def is_own(system: str, domain: str) -> bool:
    return system == BASE or system.endswith(f"@{domain}")


def seed_distribution(spreads: Mapping, system: str, seeds: Sequence[int | None], seed: int) -> np.ndarray:
    """The distribution of a mean over seeds that are themselves drawn, the same ones for every system."""
    each = np.stack([spreads[system, run] for run in seeds])
    times = each.shape[1]
    drawn = np.random.default_rng([seed, 1]).integers(len(seeds), size=(len(seeds), times))
    return each[drawn, np.arange(times)].mean(axis=0)
