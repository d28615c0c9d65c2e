"""Adapters whose factors lie in pages of a pool while they are used, and in host memory always.

An adapter's file stays mapped into the host's memory, so thousands take no more of it than those that are read. The
least recently used leaves the pool when its pages are needed; one that a request uses stays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from loratory.adapters.core import Linear
from loratory.adapters.deltas import Adapter, LowRank
from loratory.errors import InputError
from loratory.serving.adapters import AdapterSet
from loratory.serving.layers import RowwiseLayer, scaled_factors
from loratory.serving.pool import PagePool
from loratory.serving.rows import RowContext


class PagedLinear(RowwiseLayer):
    """Changes of several adapters in a pool; of one that is not there, all pages are page 0, which is zero.

    Args:
        deltas: of each adapter, None where it leaves this layer alone; only their sizes are looked at.
    """

    def __init__(self, base: Linear, context: RowContext, deltas: Sequence[LowRank | None], pool: PagePool):
        super().__init__(base, context)
        self.pool = pool
        rank = max(delta.rank for delta in deltas if delta is not None)
        self.inner, self.out = next((delta.A.shape[1], delta.B.shape[0]) for delta in deltas if delta is not None)
        widths = [pool.pages_per_vector(size) for size in (self.inner, self.out)]
        shapes = [(len(deltas), rank, width) for width in widths]
        self.A_places, self.B_places = (base.weight.new_zeros(shape, dtype=torch.long) for shape in shapes)
        self.ranks = [0] * len(deltas)

    def pages_needed(self, delta: LowRank) -> int:
        return delta.rank * (self.A_places.shape[-1] + self.B_places.shape[-1])

    def put_change(self, place: int, delta: LowRank, pages: torch.Tensor) -> None:
        """Writes an adapter's change to so many pages as it needs."""
        a, b = scaled_factors(delta, self.weight)
        cut = delta.rank * self.A_places.shape[-1]
        for places, part, vectors in ((self.A_places, pages[:cut], a), (self.B_places, pages[cut:], b)):
            places[place, : delta.rank] = part.view(delta.rank, -1)
            self.pool.write(places[place, : delta.rank], vectors)
        self.ranks[place] = delta.rank

    def drop_change(self, place: int) -> None:
        self.A_places[place] = self.B_places[place] = self.ranks[place] = 0

    def has_change(self, place: int) -> bool:
        return self.ranks[place] > 0

    def factors(self, places: int | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.pool.read(self.A_places[places], self.inner), self.pool.read(self.B_places[places], self.out)


class PagedAdapters(AdapterSet):
    """As an `AdapterSet`, of adapters that come into a pool when they are used.

    Attributes:
        adapters: {name: adapter} in host memory. uses: how many requests use each. resident: names of those in the
            pool, the least recently used first.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        adapters: Mapping[str, Adapter],
        where: Mapping[str, Path | str],
        pool: PagePool,
    ):
        self.adapters, self.pool, self.where = adapters, pool, where
        self.layers: dict[str, PagedLinear] = {}
        self.uses: Counter[str] = Counter()
        self.resident: dict[str, None] = {}
        super().__init__(model, adapters, where)

    def put_heads(self, adapters: Sequence[Adapter]) -> None:
        """Raises:
        InputError: an adapter has trained a layer whole: that has no low rank, and so no pages.
        """
        for name, adapter in self.adapters.items():
            if adapter.heads:
                what = "a layer that is trained whole has no place in a pool"
                raise InputError(self.where[name], what, next(iter(adapter.heads)), "a low-rank change")

    def put_changes(self, adapters: Sequence[Adapter], layers: Mapping[str, Linear | nn.Conv1d]) -> None:
        for name in sorted({name for adapter in adapters for name in adapter.deltas}):
            layer = layers[name]
            if isinstance(layer, nn.Conv1d):
                raise InputError(f"pool: {name}", "a convolution has no place in a pool")
            deltas = [adapter.deltas.get(name) for adapter in adapters]
            self.layers[name] = PagedLinear(layer, self.context, deltas, self.pool)
            self.replace_layer(name, self.layers[name])

    def pages_needed(self, name: str | None) -> int:
        """Of an adapter in the pool; none of the bare base."""
        deltas = self.adapters[name].deltas if name is not None else {}
        return sum(self.layers[layer].pages_needed(delta) for layer, delta in deltas.items())

    def take(self, name: str) -> None:
        """A request uses the adapter, which stays in the pool until `give_back`.

        Raises:
            InputError: it has no room beside what is in use.
        """
        if name not in self.resident:
            needed = self.pages_needed(name)
            self.make_room(needed)
            pages, place = self.pool.allocate(name, needed), self.places[name]
            for layer, delta in self.adapters[name].deltas.items():
                count = self.layers[layer].pages_needed(delta)
                self.layers[layer].put_change(place, delta, pages[:count])
                pages = pages[count:]
        self.uses[name] += 1
        self.resident[name] = self.resident.pop(name, None)  # to the end: the latest

    def give_back(self, name: str) -> None:
        self.uses[name] -= 1

    def make_room(self, pages: int) -> None:
        """Frees pages of adapters that nobody uses, the least recently used first, until so many are free."""
        for name in [name for name in self.resident if not self.uses[name]]:
            if len(self.pool.free) >= pages:
                return
            self.evict(name)

    def evict(self, name: str) -> None:
        del self.resident[name]
        for layer in self.adapters[name].deltas:
            self.layers[layer].drop_change(self.places[name])
        self.pool.release(name)

    @contextmanager
    def use_rows(self, names: Sequence[str | None]) -> Iterator[None]:
        """Raises:
        RuntimeError: an adapter is not in the pool; its rows would be those of the bare base.
        """
        if absent := {name for name in names if name is not None} - self.resident.keys():
            raise RuntimeError(f"adapters that are not in the pool: {sorted(absent)}")
        with super().use_rows(names):
            yield
