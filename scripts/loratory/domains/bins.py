"""Metrics over a part of the records: those of which a size (an age, a past, a length) lies between two bounds."""

from collections.abc import Callable, Sequence
from math import inf

import numpy as np

from loratory.domains.contract import Columns

Where = Callable[[Columns], np.ndarray]  # columns -> (n,) bool, the rows that count


def rows_between(column: str, low: float, high: float = inf) -> Where:
    """The rows whose value is at least `low` and below `high`; never those without a value (NaN)."""
    return lambda columns: (low <= columns[column]) & (columns[column] < high)


def rows_of_both(one: Where, other: Where) -> Where:
    return lambda columns: one(columns) & other(columns)


def length_bins(bounds: Sequence[int]) -> dict[str, tuple[str, Where]]:
    """{name: (words, rows of that column `length`)} of whole lengths up to each bound, rising, and above the last.

    >>> [(name, words) for name, (words, _) in length_bins((100, 200)).items()]
    [('to_100', 'up to 100'), ('101_200', '101 to 200'), ('over_200', 'over 200')]
    """
    found = {}
    for before, last in zip((0, *bounds), bounds):
        name = f"{before + 1}_{last}" if before else f"to_{last}"
        words = f"{before + 1} to {last}" if before else f"up to {last}"
        found[name] = words, rows_between("length", before + 1, last + 1)
    return found | {f"over_{bounds[-1]}": (f"over {bounds[-1]}", rows_between("length", bounds[-1] + 1))}
