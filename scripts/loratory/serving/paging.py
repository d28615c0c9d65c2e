"""Adapters whose factors lie in pages of a pool while they are used, and in host memory always.

An adapter's file stays mapped into the host's memory, so thousands take no more of it than those that are read. On a
GPU an adapter comes as one copy from pinned memory on a stream of its own, while the stream of the steps goes on. The
least recently used leaves the pool when its pages are needed; one that a request uses stays.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from loratory.adapters.core import Linear
from loratory.adapters.deltas import Adapter, LowRank
from loratory.errors import InputError
from loratory.serving.adapters import AdapterSet
from loratory.serving.layers import RowwiseLayer
from loratory.serving.pool import PagePool, Pages
from loratory.serving.rows import RowContext

Deltas = Mapping[str, LowRank]
BUFFERS = 4  # of adapters on their way
ALIGNED = 16  # bytes


class PagedLinear(RowwiseLayer):
    """Changes of several adapters in a pool; of one that is not there, all pages are page 0, which is zero.

    Args:
        deltas: of each adapter, None where it leaves this layer alone; only their sizes are looked at.
    """

    def __init__(self, base: Linear, context: RowContext, deltas: Sequence[LowRank | None], pool: PagePool):
        super().__init__(base, context, deltas)
        self.pool = pool
        self.parts = tuple(pool.pages_per_vector(size) for size in self.sizes)

    def pages_needed(self, delta: LowRank) -> int:
        return delta.rank * sum(self.parts)

    def use_columns(self, table: torch.Tensor, first: int) -> int:
        """Finds its pages in a table `[places, columns]` of all layers, from a column on; returns the next layer's."""
        a, b = (self.rank * part for part in self.parts)
        self.columns = np.arange(first, first + a), np.arange(first + a, first + a + b)
        views = (table[:, own[0] : own[-1] + 1].unflatten(1, (self.rank, -1)) for own in self.columns)
        self.a, self.b = (Pages(self.pool.vectors, view, size) for view, size in zip(views, self.sizes))
        return first + a + b


@dataclass(frozen=True)
class LayerGroup:
    """Layers that an adapter changes at one rank and of one shape, so that their factors are copied as one tensor."""

    rank: int
    inner: int
    out: int
    names: list[str]


def group_layers(deltas: Deltas) -> list[LayerGroup]:
    names = defaultdict(list)
    for name, delta in deltas.items():
        names[delta.rank, delta.A.shape[1], delta.B.shape[0]].append(name)
    return [LayerGroup(*shape, found) for shape, found in names.items()]


class PagedAdapters(AdapterSet):
    """As an `AdapterSet`, of adapters that come into a pool when they are used, or ahead of it.

    Attributes:
        adapters: {name: adapter} in host memory. uses: how many requests use each. resident: {name of one in the pool:
            the event after which its pages hold it, None if they do}, the least recently used first.
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
        self.resident: dict[str, torch.cuda.Event | None] = {}
        self.device = pool.vectors.device
        self.stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self.staging = Staging(self.device)
        super().__init__(model, adapters, where)
        self.pages = {name: self.count_pages(adapter) for name, adapter in adapters.items()}
        self.await_steps()

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
        columns = sum(layer.rank * sum(layer.parts) for layer in self.layers.values())
        self.table = torch.zeros(len(adapters), columns, dtype=torch.int32, device=self.device)
        first = 0
        for each in self.layers.values():
            first = each.use_columns(self.table, first)

    def count_pages(self, adapter: Adapter) -> int:
        return sum(self.layers[layer].pages_needed(delta) for layer, delta in adapter.deltas.items())

    def pages_needed(self, name: str | None) -> int:
        """Of an adapter in the pool; none of the bare base."""
        return self.pages[name] if name is not None else 0

    def take(self, name: str) -> None:
        """A request uses the adapter, which stays in the pool until `give_back`.

        Raises:
            InputError: it has no room beside what is in use.
        """
        self.claim(name)
        self.bring(name)

    def claim(self, name: str) -> None:
        """A request will use the adapter: if it is in the pool it stays."""
        self.uses[name] += 1
        if name in self.resident:
            self.resident[name] = self.resident.pop(name)  # to the end: the latest

    def bring(self, name: str) -> None:
        """An adapter that is claimed is in the pool.

        Raises:
            InputError: it has no room beside what is in use.
        """
        if name not in self.resident:
            self.make_room(self.pages[name])
            self.copy_adapter(name)
        self.await_copy(name)

    def give_back(self, name: str) -> None:
        self.uses[name] -= 1

    def fetch_ahead(self, names: Iterable[str], most: int) -> None:
        """Begins to copy the first adapters of these that are not in the pool, in place of others that nobody uses."""
        wanted = list(dict.fromkeys(names))
        for name in [name for name in wanted if name not in self.resident][:most]:
            self.make_room(self.pages[name], wanted)
            if len(self.pool.free) < self.pages[name]:
                return
            self.copy_adapter(name)

    def make_room(self, pages: int, wanted: Collection[str] = ()) -> None:
        """Frees pages of adapters that nobody uses, the least recently used first, until so many are free.

        Args:
            wanted: adapters that stay.
        """
        if len(self.pool.free) >= pages:
            return
        for name in [name for name in self.resident if not self.uses[name] and name not in wanted]:
            self.evict(name)
            if len(self.pool.free) >= pages:
                return

    def evict(self, name: str) -> None:
        self.await_copy(name)  # whose pages are written to next
        del self.resident[name]
        with self.beside_steps():  # in order with a copy that may come again
            self.table[self.places[name]] = 0
        self.pool.release(name)

    def await_copy(self, name: str) -> None:
        """What is asked of the device from here on comes after the adapter's copy."""
        event = self.resident[name]
        if event is not None:
            torch.cuda.current_stream(self.device).wait_event(event)
            self.resident[name] = None

    def copy_adapter(self, name: str) -> None:
        """Begins to copy an adapter from its file to pages of its own; so many are free."""
        deltas, own = self.adapters[name].deltas, self.pool.allocate_each([name], self.pages[name])[0]
        groups, line = group_layers(deltas), np.zeros(self.table.shape[1], np.int32)
        line[np.concatenate([self.columns_of(group) for group in groups])] = own
        multipliers = np.array([deltas[layer].scale for group in groups for layer in group.names], np.float32)
        numbers = torch.from_numpy(np.concatenate([line, own, multipliers.view(np.int32)]))
        with self.beside_steps():
            numbers, factors = self.staging.upload(numbers, join_factors(groups, deltas))
            row, pages, scales = numbers.split([len(line), len(own), len(multipliers)])
            vectors = self.page_vectors(groups, scales.view(torch.float32), factors)
            self.pool.vectors.index_copy_(0, pages.long(), vectors)
            self.table[self.places[name]] = row
            self.resident[name] = self.stream.record_event() if self.stream is not None else None

    def beside_steps(self) -> AbstractContextManager:
        """Inside, work is for the second stream; see `await_steps`."""
        return nullcontext() if self.stream is None else torch.cuda.stream(self.stream)

    def await_steps(self) -> None:
        """What the second stream is asked from here on comes after all that the first one has been asked.

        Once before a step is enough: what becomes free within one is of adapters that nobody uses.
        """
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream(self.device))

    def columns_of(self, group: LayerGroup) -> np.ndarray:
        """Of the table, for the pages of A of all layers, then of B, as `page_vectors` orders them."""
        layers = [self.layers[name] for name in group.names]
        return np.concatenate([layer.columns[i][: group.rank * layer.parts[i]] for i in (0, 1) for layer in layers])

    def page_vectors(self, groups: Sequence[LayerGroup], scales: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        """What an adapter's pages hold `[pages, width]`, of its joined factors and the scales of all layers."""
        found, first = [], 0
        for group, scale in zip(groups, scales.split([len(group.names) for group in groups])):
            count, middle = len(group.names), first + len(group.names) * group.rank * group.inner
            last = middle + count * group.rank * group.out
            a = factors[first:middle].view(-1, group.inner)
            b = factors[middle:last].view(count, group.out, group.rank)
            scaled = b.float() * scale[:, None, None]
            found += [self.pool.cut_vectors(a), self.pool.cut_vectors(scaled.transpose(1, 2))]
            first = last
        return torch.cat(found)

    def check_resident(self, names: Sequence[str | None]) -> None:
        """Raises:
        RuntimeError: an adapter is not in the pool; its rows would be those of the bare base.
        """
        if absent := {name for name in names if name is not None} - self.resident.keys():
            raise RuntimeError(f"adapters that are not in the pool: {sorted(absent)}")

    @contextmanager
    def use_rows(self, names: Sequence[str | None]) -> Iterator[None]:
        """Raises:
        RuntimeError: as `check_resident`.
        """
        self.check_resident(names)
        with super().use_rows(names):
            yield


def join_factors(groups: Sequence[LayerGroup], deltas: Deltas) -> list[torch.Tensor]:
    """A of a group's layers, then their B, then those of the next group, each as a vector."""
    pairs = [([deltas[name].A for name in group.names], [deltas[name].B for name in group.names]) for group in groups]
    return [factor.reshape(-1) for pair in pairs for side in pair for factor in side]


class Staging:
    """Memory of the host through which adapters go to the device, pinned if that is a GPU.

    A few buffers take turns and stay: to pin new memory takes longer than to copy an adapter.
    """

    def __init__(self, device: torch.device):
        self.device, self.is_pinned = device, device.type == "cuda"
        self.buffers = [torch.empty(0, dtype=torch.uint8)] * (BUFFERS if self.is_pinned else 1)
        self.events: list[torch.cuda.Event | None] = [None] * len(self.buffers)
        self.turn = 0

    def upload(self, numbers: torch.Tensor, parts: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Numbers `[n]` int32, and the parts as one vector, on the device in one copy; on a CPU the next call
        overwrites both."""
        dtype = reduce(torch.promote_types, (part.dtype for part in parts))
        first = -(-numbers.nbytes // ALIGNED) * ALIGNED
        last = first + sum(map(len, parts)) * dtype.itemsize
        buffer = self.next_buffer(last)
        buffer[: numbers.nbytes].view(torch.int32).copy_(numbers)
        torch.cat(parts, out=buffer[first:last].view(dtype))
        there = buffer[:last].to(self.device, non_blocking=True)
        if self.is_pinned:
            self.events[self.turn] = torch.cuda.current_stream(self.device).record_event()
        return there[: numbers.nbytes].view(torch.int32), there[first:].view(dtype)

    def next_buffer(self, size: int) -> torch.Tensor:
        """One of at least so many bytes, which no copy reads any more."""
        self.turn = (self.turn + 1) % len(self.buffers)
        event = self.events[self.turn]
        if event is not None:
            event.synchronize()
        if len(self.buffers[self.turn]) < size:
            self.buffers[self.turn] = torch.empty(size, dtype=torch.uint8, pin_memory=self.is_pinned)
        return self.buffers[self.turn]
