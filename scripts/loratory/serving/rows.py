"""Whose each row of a batch is: set before a pass, read by every layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from math import gcd

import torch

from loratory.serving.pool import upload

SHORT_TILE, LONG_TILE = 16, 64  # rows; a GPU multiplies 16 at least


@dataclass(frozen=True)
class Segment:
    """Consecutive rows `first` to (not with) `last` of one adapter, by its place in the set."""

    place: int
    first: int
    last: int


@dataclass(frozen=True)
class Tiles:
    """Parts of a batch, each of one adapter, that a kernel computes at once.

    Attributes:
        bounds: `[tiles, 3]` int32: the adapter's place, the first row and that after the last; both 0: no tile.
        rows: the most that a tile has.
    """

    bounds: torch.Tensor
    rows: int


class RowOwners:
    """The adapter of each row of a batch, by its place in the set.

    Rows of one adapter are best next to each other: layers then multiply segments and not rows.

    Attributes:
        segments: runs of rows of one adapter. size: the rows of the groups, all of one adapter and of one size, that a
            batch can be cut into: what all segments' lengths are multiples of. groups: the adapter of each.
    """

    def __init__(self, places: Sequence[int], device: torch.device | str = "cpu"):
        self.places, self.device = tuple(places), torch.device(device)
        self.cut: dict[int, Tiles] = {}
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
        return upload(torch.tensor(self.places[:: self.size]), self.device)

    @property
    def has_few_segments(self) -> bool:
        """Whether a product for each segment is less work than to gather an adapter for each group."""
        return 2 * len(self.segments) <= len(self) // self.size

    def tiles(self, times: int) -> Tiles:
        """Of a batch whose rows have so many vectors each."""
        if times not in self.cut:
            longest = times * max(segment.last - segment.first for segment in self.segments)
            rows = LONG_TILE if longest > SHORT_TILE else SHORT_TILE
            parts = [(s.place, s.first * times, s.last * times) for s in self.segments]
            bounds = [(p, at, min(at + rows, last)) for p, first, last in parts for at in range(first, last, rows)]
            self.cut[times] = Tiles(upload(torch.tensor(bounds, dtype=torch.int32), self.device), rows)
        return self.cut[times]

    def repeat(self, times: int) -> RowOwners:
        """Of a batch that has each row so many times, one after another (beams, or a row's tokens)."""
        return RowOwners([place for place in self.places for _ in range(times)], self.device)


class OwnersInPlace(RowOwners):
    """Owners whose tensors stay in place: a step that a GPU replays reads what was last written there.

    Args:
        groups: `[rows]` the place of each row's adapter. bounds: see `Tiles`, as many as there are rows.
    """

    has_few_segments = False

    def __init__(self, groups: torch.Tensor, bounds: torch.Tensor):
        self.groups, self.of_rows, self.size = groups, Tiles(bounds, SHORT_TILE), 1

    def __len__(self) -> int:
        return len(self.groups)

    def tiles(self, times: int) -> Tiles:
        """A row has one vector."""
        return self.of_rows


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
