"""Predictions → how systems differ on the primary metric of a domain; first of all the adapters of one domain.

Unlike `evaluation.score`, which speaks of what was trained as it is, this speaks of what trained it: each draw takes
whole groups of test records and, again with replacement, training seeds. All systems see the same draws, so that
differences are paired. With few seeds such intervals are still too narrow.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from loratory import registry
from loratory.data.files import sha256, write_json
from loratory.domains.contract import Metric
from loratory.domains.dataset import read_split
from loratory.evaluation.bootstrap import distributions, statistic
from loratory.evaluation.score import (
    BASE,
    CONTROL,
    choose_control,
    described,
    estimate,
    gain,
    gather,
    primary_metric,
    size,
)

SPLIT = "test"


@dataclass(frozen=True)
class Paired:
    """Some systems on the same records of one split, by the domain's primary metric.

    Attributes:
        values: {system: {training seed: value}}.
        spreads: {system: (resamples,) means over drawn seeds of drawn groups}, the same draws for all of them.
        sizes: of the split. seeds: training seeds, in order.
        control: as of `score.choose_control`; it is one of the systems.
    """

    metric: Metric
    values: dict[str, dict]
    spreads: dict[str, np.ndarray]
    sizes: dict
    seeds: list[int]
    control: dict | None = None

    def row(self, system: str) -> dict:
        """As a row of `evaluation.score`, with the gains over the base and over the control."""
        known = {"system": system, **self.sizes, **described(self.metric)}
        known |= estimate(self.values[system], self.spreads[system], self.seeds)
        control = self.control and self.control["system"]
        return known | self.better(system, BASE) | self.better(system, control, CONTROL)

    def better(self, system: str, than: str | None, name: str = "gain") -> dict:
        """As `score.gain`."""
        return gain(self.metric, self.values, self.spreads, system, than, name)

    def gains(self, system: str) -> np.ndarray:
        """(resamples,) gains over the base, above 0 where the system is better."""
        return self.metric.sign * (self.spreads[system] - self.spreads[BASE])


def paired(
    domain: str,
    files: Mapping,
    data,
    task,
    split: str,
    chosen: Callable[[str], bool],
    resamples: int,
    seed,
    baselines=None,
) -> Paired:
    """Compares the systems that are `chosen` by their names, and the best control without a language model.

    Args:
        files: {training seed: parquet file of predictions}, in order.
        baselines: parquet file of controls without a language model; None: they are left out.
        data: folder of the domain's dataset. task: the domain's `Task` options.
        resamples, seed: how many bootstrap draws, and a seed, or several numbers that are one, of the drawn groups;
            the drawn training seeds depend on its first number alone, so that they are the same in all domains.

    Raises:
        InputError: as `evaluation.score`.
    """
    metrics = registry.load("domain", domain, "metrics")
    metric = primary_metric(metrics)
    splits = gather({**files, **({None: baselines} if baselines else {})}, data, {})
    control = choose_control(metrics, splits, data, task)
    wanted = {name for name in splits[split] if chosen(name)} | ({control["system"]} if control else set())
    systems = {name: runs for name, runs in splits[split].items() if name in wanted}
    records = read_split(data, split)
    columns = {
        (name, run): metrics.columns(rows, records, task)
        for name, runs in systems.items()
        for run, rows in runs.items()
    }
    values = {name: {run: metric.measure(columns[name, run]) for run in runs} for name, runs in systems.items()}
    statistics = {key: statistic(metric.value, [each], metric.where) for key, each in columns.items()}
    groups = np.array([row["group"] for row in next(iter(next(iter(systems.values())).values()))])
    spreads = distributions(statistics, groups, resamples, seed)
    over = {name: over_seeds(spreads, name, list(runs), np.atleast_1d(seed)[0]) for name, runs in systems.items()}
    n, n_groups = size(groups[metric.selection(next(iter(columns.values())))])
    return Paired(metric, values, over, {"split": split, "n": n, "n_groups": n_groups}, list(files), control)


def contrast(domain, base, predictions, baselines, data, task, against, resamples: int, seed: int, out) -> None:
    """Writes a row for the base, each adapter of the domain and the best control to the JSON file `out`.

    A row is one of `evaluation.score` with the name of its `adapter` (or of the control), and with `difference`,
    `difference_low` and `difference_high`: how much better it is than the adapter `against`.

    Args:
        predictions: (training seed, parquet file) pairs.
        baselines, data, task, resamples, seed: as of `paired`.

    Raises:
        InputError: as `evaluation.score`, or `against` was not asked.
    """
    files, reference = dict(sorted(predictions)), f"{against}@{domain}"
    found = paired(domain, files, data, task, SPLIT, lambda name: is_own(name, domain), resamples, seed, baselines)
    if reference not in found.values:
        raise registry.unknown(next(iter(files.values())), "system", reference, found.values)
    rows = [
        found.row(name) | {"adapter": name.removesuffix(f"@{domain}")} | found.better(name, reference, "difference")
        for name in found.values
    ]
    report = {"domain": domain, "base": base, "against": against, "control": found.control, "rows": rows}
    report |= {"seeds": list(files), "resamples": resamples, "seed": seed, "inputs": digests(files, baselines)}
    write_json(out, report)


def digests(files: Mapping, baselines=None) -> dict[str, str]:
    named = {f"seed{run}": path for run, path in files.items()} | ({"baselines": baselines} if baselines else {})
    return {name: sha256(path) for name, path in named.items()}


def is_own(system: str, domain: str) -> bool:
    return system == BASE or system.endswith(f"@{domain}")


def over_seeds(spreads: Mapping, system: str, seeds: Sequence[int], seed: int) -> np.ndarray:
    """The distribution of a mean over seeds that are themselves drawn, the same ones for every system."""
    each = np.stack([spreads[system, run] for run in seeds])
    times = each.shape[1]
    drawn = np.random.default_rng([seed, 1]).integers(len(seeds), size=(len(seeds), times))
    return each[drawn, np.arange(times)].mean(axis=0)
