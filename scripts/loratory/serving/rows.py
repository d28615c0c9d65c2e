"""Whose each row of a batch is: set before a pass, read by every layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from math import gcd

import torch


@dataclass(frozen=True)
class Segment:
    """Consecutive rows `first` to (not with) `last` of one adapter, by its place in the set."""

    place: int
    first: int
    last: int


class RowOwners:
    """The adapter of each row of a batch, by its place in the set.

    Rows of one adapter are best next to each other: layers then multiply segments and not rows.

    Attributes:
        segments: runs of rows of one adapter. size: the rows of the groups, all of one adapter and of one size, that a
            batch can be cut into: what all segments' lengths are multiples of. groups: the adapter of each.
    """

    def __init__(self, places: Sequence[int], device: torch.device | str = "cpu"):
        self.places, self.device = tuple(places), device
        self.segments: list[Segment] = []
        for place, run in groupby(self.places):
            first = self.segments[-1].last if self.segments else 0
            self.segments.append(Segment(place, first, first + len(list(run))))
        self.size = gcd(*(segment.last - segment.first for segment in self.segments))

    def __len__(self) -> int:
        return len(self.places)

    @cached_property
    def groups(self) -> torch.Tensor:
        """`[rows / size]`"""
        return torch.tensor(self.places[:: self.size], device=self.device)

    @property
    def has_few_segments(self) -> bool:
        """Whether a product for each segment is less work than to gather an adapter for each group."""
        return 2 * len(self.segments) <= len(self) // self.size

    def repeat(self, times: int) -> RowOwners:
        """Of a batch that has each row so many times, one after another (beams, or a row's tokens)."""
        return RowOwners([place for place in self.places for _ in range(times)], self.device)


class RowContext:
    """The owners in force; None outside a batch, where layers refuse to run."""

    def __init__(self) -> None:
        self.owners: RowOwners | None = None
        self.repeated: dict[int, RowOwners] = {}

    @contextmanager
    def use_owners(self, owners: RowOwners) -> Iterator[None]:
        before = self.owners, self.repeated
        self.owners, self.repeated = owners, {1: owners}
        try:
            yield
        finally:
            self.owners, self.repeated = before

    def owners_of(self, rows: int) -> RowOwners:
        """The owners of a layer's input of so many rows, each row of the batch the same number of times.

        Raises:
            RuntimeError: no batch is set, or the input is not of its rows.
        """
        if self.owners is None:
            raise RuntimeError("a layer of several adapters was called without the owners of its rows")
        times, rest = divmod(rows, len(self.owners))
        if rest or not times:
            raise RuntimeError(f"a layer reads {rows} rows of a batch of {len(self.owners)}")
        if times not in self.repeated:
            self.repeated[times] = self.owners.repeat(times)
        return self.repeated[times]
