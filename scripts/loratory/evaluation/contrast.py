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
from loratory.evaluation.score import BASE, described, estimate, gain, gather

SPLIT = "test"


@dataclass(frozen=True)
class Paired:
    """Some systems on the same records of one split, by the domain's primary metric.

    Attributes:
        values: {system: {training seed: value}}.
        spreads: {system: (resamples,) means over drawn seeds of drawn groups}, the same draws for all of them.
        sizes: of the split. seeds: training seeds, in order.
    """

    metric: Metric
    values: dict[str, dict]
    spreads: dict[str, np.ndarray]
    sizes: dict
    seeds: list[int]

    def row(self, system: str) -> dict:
        """As a row of `evaluation.score`, with the gain over the base."""
        known = {"system": system, **self.sizes, **described(self.metric)}
        known |= estimate(self.values[system], self.spreads[system], self.seeds)
        return known | self.better(system, BASE)

    def better(self, system: str, than: str, name: str = "gain") -> dict:
        """How much better a system is than another: `{name}`, `{name}_low` and `{name}_high`, all None if it is that
        system, or if the other was not asked."""
        found = gain(self.metric, self.values, self.spreads, system, than if than != system else None)
        return {part.replace("gain", name): value for part, value in found.items()}

    def gains(self, system: str) -> np.ndarray:
        """(resamples,) gains over the base, above 0 where the system is better."""
        sign = 1 if self.metric.direction == "up" else -1
        return sign * (self.spreads[system] - self.spreads[BASE])


def paired(
    domain: str, files: Mapping, data, task, split: str, chosen: Callable[[str], bool], resamples: int, seed
) -> Paired:
    """Compares the systems that are `chosen` by their names.

    Args:
        files: {training seed: parquet file of predictions}, in order.
        data: folder of the domain's dataset. task: the domain's `Task` options.
        resamples, seed: how many bootstrap draws, and a seed, or several numbers that are one, of the drawn groups;
            the drawn training seeds depend on its first number alone, so that they are the same in all domains.

    Raises:
        InputError: as `evaluation.score`.
    """
    metrics = registry.load("domain", domain, "metrics")
    metric = next(m for m in metrics.METRICS if m.primary)
    systems = {name: runs for name, runs in gather(files, data, {})[split].items() if chosen(name)}
    records = read_split(data, split)
    columns = {
        (name, run): metrics.columns(rows, records, task)
        for name, runs in systems.items()
        for run, rows in runs.items()
    }
    values = {name: {run: float(metric.value(columns[name, run])) for run in files} for name in systems}
    statistics = {key: statistic(metric.value, [each]) for key, each in columns.items()}
    groups = [row["group"] for row in next(iter(systems.values()))[next(iter(files))]]
    spreads = distributions(statistics, groups, resamples, seed)
    seeds = list(files)
    over = {name: over_seeds(spreads, name, seeds, np.atleast_1d(seed)[0]) for name in systems}
    sizes = {"split": split, "n": len(groups), "n_groups": len(set(groups))}
    return Paired(metric, values, over, sizes, seeds)


def contrast(domain, base, predictions, data, task, against, resamples: int, seed: int, out) -> None:
    """Writes a row for the base and for each adapter of the domain to the JSON file `out`.

    A row is one of `evaluation.score` with the name of its `adapter`, and with `difference`, `difference_low` and
    `difference_high`: how much better it is than the adapter `against`.

    Args:
        predictions: (training seed, parquet file) pairs.
        data, task, resamples, seed: as of `paired`.

    Raises:
        InputError: as `evaluation.score`, or `against` was not asked.
    """
    files, reference = dict(sorted(predictions)), f"{against}@{domain}"
    found = paired(domain, files, data, task, SPLIT, lambda name: is_own(name, domain), resamples, seed)
    if reference not in found.values:
        raise registry.unknown(next(iter(files.values())), "system", reference, found.values)
    rows = [
        found.row(name) | {"adapter": name.removesuffix(f"@{domain}")} | found.better(name, reference, "difference")
        for name in found.values
    ]
    report = {"domain": domain, "base": base, "against": against, "rows": rows, "seeds": list(files)}
    report |= {"resamples": resamples, "seed": seed, "inputs": digests(files)}
    write_json(out, report)


def digests(files: Mapping) -> dict[str, str]:
    return {f"seed{run}": sha256(path) for run, path in files.items()}


def is_own(system: str, domain: str) -> bool:
    return system == BASE or system.endswith(f"@{domain}")


def over_seeds(spreads: Mapping, system: str, seeds: Sequence[int], seed: int) -> np.ndarray:
    """The distribution of a mean over seeds that are themselves drawn, the same ones for every system."""
    each = np.stack([spreads[system, run] for run in seeds])
    times = each.shape[1]
    drawn = np.random.default_rng([seed, 1]).integers(len(seeds), size=(len(seeds), times))
    return each[drawn, np.arange(times)].mean(axis=0)
