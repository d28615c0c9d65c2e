"""Predictions → how the adapters of one domain differ from one of them, on its primary metric.

Unlike `evaluation.score`, which speaks of the trained adapters as they are, this speaks of the methods that made them:
each draw takes whole groups of test records and, again with replacement, training seeds. All systems see the same
draws, so that differences are paired. With few seeds such intervals are still too narrow.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from loratory import registry
from loratory.data.files import sha256, write_json
from loratory.domains.dataset import read_split
from loratory.evaluation.bootstrap import distributions, statistic
from loratory.evaluation.score import BASE, described, estimate, gain, gather

SPLIT = "test"


def contrast(domain, base, predictions, data, task, against, resamples: int, seed: int, out) -> None:
    """Writes a row for the base and for each adapter of the domain to the JSON file `out`.

    A row is one of `evaluation.score` with the name of its `adapter`, and with `difference`, `difference_low` and
    `difference_high`: how much better it is than the adapter `against`.

    Args:
        predictions: (training seed, parquet file) pairs.
        data: folder of the domain's dataset. task: the domain's `Task` options.
        resamples, seed: how many bootstrap draws, and their seed.

    Raises:
        InputError: as `evaluation.score`, or `against` was not asked.
    """
    metrics, files = registry.load("domain", domain, "metrics"), dict(sorted(predictions))
    metric = next(m for m in metrics.METRICS if m.primary)
    systems = {name: runs for name, runs in gather(files, data, {})[SPLIT].items() if is_own(name, domain)}
    reference = f"{against}@{domain}"
    if reference not in systems:
        raise registry.unknown(next(iter(files.values())), "system", reference, systems)
    records = read_split(data, SPLIT)
    columns = {
        (name, run): metrics.columns(rows, records, task)
        for name, runs in systems.items()
        for run, rows in runs.items()
    }
    values = {(name, metric.name): {run: float(metric.value(columns[name, run])) for run in files} for name in systems}
    statistics = {key: statistic(metric.value, [each]) for key, each in columns.items()}
    groups = [row["group"] for row in next(iter(systems.values()))[next(iter(files))]]
    spreads = distributions(statistics, groups, resamples, seed)
    pooled = {(name, metric.name): over_seeds(spreads, name, list(files), seed) for name in systems}
    sizes = {"split": SPLIT, "n": len(groups), "n_groups": len(set(groups))}
    rows = []
    for name in systems:
        key, bare = (name, metric.name), (BASE, metric.name)
        difference = gain(metric, values, pooled, key, (reference, metric.name) if name != reference else None)
        rows.append(
            {"system": name, "adapter": name.removesuffix(f"@{domain}"), **sizes, **described(metric)}
            | estimate(values[key], pooled[key], list(files))
            | gain(metric, values, pooled, key, bare if name != BASE else None)
            | {part.replace("gain", "difference"): value for part, value in difference.items()}
        )
    report = {"domain": domain, "base": base, "against": against, "rows": rows, "seeds": list(files)}
    report |= {
        "resamples": resamples,
        "seed": seed,
        "inputs": {f"seed{run}": sha256(path) for run, path in files.items()},
    }
    write_json(out, report)


def is_own(system: str, domain: str) -> bool:
    return system == BASE or system.endswith(f"@{domain}")


def over_seeds(spreads: Mapping, system: str, seeds: Sequence[int], seed: int) -> np.ndarray:
    """The distribution of a mean over seeds that are themselves drawn, the same ones for every system."""
    each = np.stack([spreads[system, run] for run in seeds])
    times = each.shape[1]
    drawn = np.random.default_rng([seed, 1]).integers(len(seeds), size=(len(seeds), times))
    return each[drawn, np.arange(times)].mean(axis=0)
