"""Passes of an engine: prompts as they come, and steps of one token on tensors in place, which a GPU replays.

Which pages, adapters and texts a step is of stands in tensors that are filled before it, so a graph that was captured
for some rows and some length answers any such rows.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, DynamicLayer, PreTrainedModel

from loratory.serving import layers
from loratory.serving.attention import PagedTexts, attend_to_pages
from loratory.serving.pool import PagePool
from loratory.serving.rows import SHORT_TILE, OwnersInPlace, RowContext

BUCKET = 256  # tokens: lengths are rounded up to multiples of it, so that few shapes are captured; a kernel needs none


class PromptLayer(DynamicLayer):
    """Keys and values of prompts in a layer: written to pages, and read from the pass itself.

    Args:
        pages: of keys and of values `[2, rows · length]`; 0 where nothing is.
    """

    def __init__(self, pool: PagePool, pages: torch.Tensor):
        super().__init__()
        self.pool, self.pages, self.is_initialized = pool, pages, True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns what it gets, `[rows, heads, length, size]`."""
        for pages, states in zip(self.pages, (key_states, value_states)):
            write_states(self.pool, pages, states)
        return key_states, value_states


class StepLayer(PromptLayer):
    """Keys and values of one more token for each row in a layer: written to pages, and all read from there.

    Args:
        pages: of the new ones `[2, rows]`. places: of all `[2, rows, length]`.
    """

    def __init__(self, pool: PagePool, pages: torch.Tensor, places: torch.Tensor):
        super().__init__(pool, pages)
        self.places = places

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes the new ones `[rows, heads, 1, size]`, and returns all `[rows, heads, length, size]`."""
        super().update(key_states, value_states)
        keys, values = (self.read_states(places, key_states.shape[1]) for places in self.places)
        return keys, values

    def read_states(self, places: torch.Tensor, heads: int) -> torch.Tensor:
        states = self.pool.vectors.index_select(0, places.flatten())
        return states.view(*places.shape, heads, -1).transpose(1, 2)


def write_states(pool: PagePool, pages: torch.Tensor, states: torch.Tensor) -> None:
    """States `[rows, heads, length, size]` to pages `[rows · length]`; none to page 0, which stays zero."""
    vectors = states.transpose(1, 2).flatten(2).flatten(0, 1).to(pool.vectors.dtype)
    pool.vectors.index_copy_(0, pages, vectors.masked_fill(pages[:, None] == 0, 0))


@dataclass(frozen=True)
class Rows:
    """What a step reads; rows of one adapter come together.

    Attributes:
        numbers: `[rows, 4]` int32: token, its position, the seat of its text in the table, the place of its adapter.
        pages: `[rows, 2 · layers]` int32: of the token's keys and values.
    """

    numbers: np.ndarray
    pages: np.ndarray


class Steps:
    """Steps of one token for rows of a causal base whose keys, values and adapters are in pages.

    The first step of a shape runs as it is and warms up, the second is captured, all others replay it. Rows are
    rounded up to a power of two; those that are nobody's read and write page 0.

    Args:
        seats: requests at once. length: the most tokens of one. capture: replay graphs; the default on a GPU, and only
            possible there.

    Attributes:
        table: `[seats + 1, 2 · layers, length]` int32: the pages of each seat's tokens; the last seat is nobody's.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        pool: PagePool,
        context: RowContext,
        seats: int,
        length: int,
        capture: bool | None = None,
    ):
        self.model, self.pool, self.context, self.seats = model, pool, context, seats
        self.length = -(-length // 8) * 8  # attention kernels want multiples of 8
        self.device = pool.vectors.device
        self.parts = 2 * model.config.num_hidden_layers
        self.table = torch.zeros(seats + 1, self.parts, self.length, dtype=torch.int32, device=self.device)
        most = power_of_two(seats)
        on_gpu = self.device.type == "cuda"
        self.host_inputs = torch.zeros(most, 7 + self.parts, dtype=torch.int32, pin_memory=on_gpu)
        self.inputs = torch.zeros_like(self.host_inputs, device=self.device)
        self.tokens = torch.zeros(most, dtype=torch.long, device=self.device)
        self.logits = torch.zeros(most, model.config.vocab_size, device=self.device)
        self.capture = on_gpu if capture is None else capture
        self.graphs: dict[tuple[int, int], Any] = {}

    @property
    def has_kernel(self) -> bool:
        """Whether attention reads pages itself; else they are copied for the model's own."""
        return layers.has_kernel(self.pool.vectors) and self.model._supports_attention_backend

    def put_prompts(self, seats: torch.Tensor, pages: torch.Tensor, real: torch.Tensor) -> None:
        """Pages `[rows, 2 · layers, length]` of requests that take seats `[rows]`, where `real` `[rows, length]`."""
        positions = (real.cumsum(-1) - 1).masked_fill(~real, 0)
        places = torch.where(real, seats[:, None], self.seats)  # what is not real is nobody's, page 0
        self.table[places, :, positions] = pages.transpose(1, 2)

    def run(self, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        """The likeliest token of each row `[rows]` and its logits `[rows, vocabulary]`, overwritten by the next step,
        before which they are to be read."""
        used, longest = len(rows.numbers), int(rows.numbers[:, 1].max()) + 1
        count = power_of_two(used)
        length = self.length if self.has_kernel else min(self.length, -(-longest // BUCKET) * BUCKET)
        self.host_inputs.numpy()[:count] = self.fill_inputs(rows, count)
        self.inputs[:count].copy_(self.host_inputs[:count], non_blocking=True)
        self.run_shape(count, length)
        return self.tokens[:used], self.logits[:used]

    def fill_inputs(self, rows: Rows, count: int) -> np.ndarray:
        """`[count, 7 + pages]`: token, position, seat, adapter's place, the three bounds of a tile, pages."""
        used, places = len(rows.numbers), rows.numbers[:, 3]
        found = np.zeros((count, 7 + self.parts), np.int32)
        found[:, 2] = self.seats
        found[:used, :4], found[:used, 7:] = rows.numbers, rows.pages
        row = np.arange(used)
        begins = np.maximum.accumulate(np.where(np.diff(places, prepend=-1) != 0, row, 0))  # of each row's adapter
        firsts = row[(row - begins) % SHORT_TILE == 0]
        found[: len(firsts), 4:7] = np.stack([places[firsts], firsts, np.append(firsts[1:], used)], 1)
        return found

    def run_shape(self, count: int, length: int) -> None:
        shape = count, length
        if not self.capture or shape not in self.graphs:
            self.graphs.setdefault(shape, None)
            return self.run_step(count, length)
        if self.graphs[shape] is None:
            try:
                self.graphs[shape] = self.capture_step(count, length)
            except RuntimeError as error:
                print(f"steps are not replayed: {str(error).splitlines()[0]}", flush=True)
                self.capture = False
                return self.run_step(count, length)
        return self.graphs[shape].replay()

    def capture_step(self, count: int, length: int) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        memory = next((other.pool() for other in self.graphs.values() if other is not None), None)
        with torch.cuda.graph(graph, pool=memory):  # one memory for all: no two run at once
            self.run_step(count, length)
        return graph

    @torch.no_grad()
    def run_step(self, count: int, length: int) -> None:
        inputs = self.inputs[:count]
        token, position, seat = inputs[:, :3].long().unbind(1)
        pages, owners = inputs[:, 7:], OwnersInPlace(inputs[:, 3], inputs[:, 4:7])
        self.table[seat, :, position] = pages
        cache, new = DynamicCache(), pages.long().T.unflatten(0, (-1, 2))
        attention: AbstractContextManager = nullcontext()
        if self.has_kernel:
            cache.layers = [PromptLayer(self.pool, each) for each in new]
            mask = torch.zeros(count, 1, 1, 1, dtype=self.model.dtype, device=self.device)  # the kernel reads none
            texts = PagedTexts(self.pool.vectors, self.table, inputs[:, 2], inputs[:, 1])
            attention = attend_to_pages(self.model.config, texts)
        else:
            hidden = torch.arange(length, device=self.device) > position[:, None]
            places = self.table[:, :, :length].index_select(0, seat).masked_fill(hidden[:, None], 0)
            old = places.transpose(0, 1).unflatten(0, (-1, 2))
            cache.layers = [StepLayer(self.pool, *each) for each in zip(new, old)]
            mask = torch.zeros_like(hidden, dtype=self.model.dtype)
            mask = mask.masked_fill(hidden, torch.finfo(mask.dtype).min)[:, None, None]
        with self.context.use_owners(owners), attention:
            logits = self.model(
                input_ids=token[:, None],
                position_ids=position[:, None],
                attention_mask=mask,
                past_key_values=cache,
                use_cache=True,
            ).logits
        self.logits[:count] = logits[:, -1]
        self.tokens[:count] = self.logits[:count].argmax(-1)


def power_of_two(number: int) -> int:
    """The next one."""
    return 1 << (number - 1).bit_length()
