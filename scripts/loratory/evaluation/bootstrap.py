"""Percentile intervals by resampling whole groups (cluster bootstrap).

Records of one group (family, gene, speaker, user) resemble each other, so the group is what is drawn again. Every
statistic sees the same draws: the difference of two distributions is a paired comparison.

Source: Efron and Tibshirani 1993, chapters 8 and 13; groups as units: Field and Welsh 2007,
doi:10.1111/j.1467-9868.2007.00593.x.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np

Key = TypeVar("Key", bound=Hashable)
LEVEL = 0.95
TAILS = (50 * (1 - LEVEL), 50 * (1 + LEVEL))  # in percent
Statistic = Callable[[np.ndarray], float]  # of drawn row numbers


class Resamples(Mapping[str, np.ndarray]):
    """Columns at the drawn rows; a column is gathered only when it is looked at."""

    def __init__(self, columns: Mapping[str, np.ndarray], rows: np.ndarray):
        self.columns, self.rows = columns, rows

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name][self.rows]

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def __len__(self) -> int:
        return len(self.columns)


def row_statistic(
    value: Callable[[Mapping], float],
    seeds: Sequence[Mapping[str, np.ndarray]],
    where: Callable[[Mapping], np.ndarray] | None = None,
) -> Statistic:
    """A function of drawn row numbers: the mean of `value` over the seeds' columns, which are aligned row by row.

    Args:
        where: columns -> (n,) bool, the rows that `value` is computed on; None: all.
    """
    if where is None:
        return lambda rows: sum(value(Resamples(columns, rows)) for columns in seeds) / len(seeds)
    selections = [where(columns) for columns in seeds]
    return lambda rows: sum(value(Resamples(c, rows[own[rows]])) for c, own in zip(seeds, selections)) / len(seeds)


def group_draws(groups: Sequence[str] | np.ndarray, times: int, seed: int | Sequence[int]) -> Iterator[np.ndarray]:
    """Yields `times` arrays of row numbers: as many groups as there are, drawn with replacement, each with its rows.

    Args:
        groups: (n,) the group of each row.
    """
    _, codes, sizes = np.unique(np.asarray(groups, dtype=str), return_inverse=True, return_counts=True)
    order = np.argsort(codes, kind="stable")
    starts = np.cumsum(sizes) - sizes
    generator = np.random.default_rng(seed)
    for _ in range(times):
        drawn = generator.integers(len(sizes), size=len(sizes))
        lengths = sizes[drawn]
        shifts = starts[drawn] - (np.cumsum(lengths) - lengths)
        yield order[np.repeat(shifts, lengths) + np.arange(lengths.sum())]


def bootstrap_distributions(
    statistics: Mapping[Key, Statistic], groups: Sequence[str] | np.ndarray, times: int, seed: int | Sequence[int]
) -> dict[Key, np.ndarray]:
    """Each statistic's (times,) values over the same draws; all NaN where fewer than two groups leave nothing to vary.

    Args:
        statistics: functions of row numbers, see `row_statistic`.
        groups: (n,) the group of each row, for all statistics alike.
    """
    if len(set(groups)) < 2:
        return {key: np.full(times, np.nan) for key in statistics}
    values = [[of(rows) for of in statistics.values()] for rows in group_draws(groups, times, seed)]
    table = np.asarray(values, dtype=float).reshape(times, len(statistics))
    return dict(zip(statistics, table.T))


def percentile_interval(distribution: np.ndarray) -> tuple[float, float]:
    """The central 95 % of a distribution.

    Returns:
        (low, high); NaN where more than 5 % of the draws are undefined, as the tails are then unknown.
    """
    defined = distribution[np.isfinite(distribution)]
    if not distribution.size or defined.size < LEVEL * distribution.size:
        return float("nan"), float("nan")
    low, high = np.percentile(defined, TAILS)
    return float(low), float(high)
