"""Writing token after token: one loop for every model that reads a cache, and caches whose tensors stay in place."""

from collections.abc import Callable, Collection, Iterator
from copy import copy
from dataclasses import dataclass

import torch
from transformers import (
    Cache,
    DynamicCache,
    DynamicLayer,
    EncoderDecoderCache,
    LogitsProcessorList,
    StoppingCriteria,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from loratory.errors import InputError


@dataclass(frozen=True)
class Sampling:
    """How to draw the next token; its own generator keeps the draw independent of everything else.

    Attributes:
        temperature: logits are divided by it. top_k: so many of the likeliest tokens stay, all if None.
        top_p: the smallest set of tokens with this mass stays (Holtzman et al. 2020, arXiv:1904.09751).

    Raises:
        InputError: an option is out of its range.
    """

    seed: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None

    def __post_init__(self):
        if self.temperature <= 0:
            raise InputError("sampling", "temperature is not positive", self.temperature, "> 0; greedy: no sampling")
        if not 0 < self.top_p <= 1:
            raise InputError("sampling", "top_p is no share of probability", self.top_p, "in (0, 1]")
        if self.top_k is not None and self.top_k < 1:
            raise InputError("sampling", "top_k keeps no token", self.top_k, "at least 1")

    def random_generator(self, device) -> torch.Generator:
        return torch.Generator(device).manual_seed(self.seed)

    def logits_warpers(self) -> LogitsProcessorList:
        found = LogitsProcessorList([TemperatureLogitsWarper(float(self.temperature))])
        if self.top_k is not None:
            found.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1:
            found.append(TopPLogitsWarper(self.top_p))
        return found


def new_cache(model):
    """The cache a model wants: its own kind (two caches for a mixture) or the usual one."""
    return model.new_cache() if hasattr(model, "new_cache") else empty_cache(model)


def empty_cache(model) -> Cache:
    """A growing cache of a Hugging Face model."""
    if model.config.is_encoder_decoder:
        return EncoderDecoderCache(DynamicCache(), DynamicCache())
    return DynamicCache()


def decode_batch(
    forward, inputs: dict, cache, end: int | Collection[int], limit: int, sampling: Sampling | None = None, **options
) -> list[list[int]]:
    """The written ids of each row, without `end`; arguments are those of `steps`."""
    return collect_rows(
        decode_steps(forward, inputs, cache, end, limit, sampling, **options), len(inputs["attention_mask"])
    )


def collect_rows(steps: Iterator[list[int | None]], rows: int) -> list[list[int]]:
    written: list[list[int]] = [[] for _ in range(rows)]
    for ids in steps:
        for row, id in zip(written, ids):
            if id is not None:
                row.append(id)
    return written


@torch.no_grad()
def decode_steps(
    forward: Callable,
    inputs: dict,
    cache,
    end: int | Collection[int],
    limit: int,
    sampling: Sampling | None = None,
    stopping: StoppingCriteria | Callable | None = None,
    allowed: torch.Tensor | None = None,
) -> Iterator[list[int | None]]:
    """Continues a left-padded batch until every row is done or wrote `limit` tokens.

    A row is done with `end`, or with the token that fulfils `stopping`. All rows are drawn for at each step, so what a
    row gets does not depend on when others are done.

    Args:
        forward: (inputs, cache) -> output with `.logits [batch, length, vocabulary]`; appends to the cache.
        inputs: first inputs: `attention_mask`, `position_ids`, and `input_ids` or `inputs_embeds`.
        end: the id, or ids, after which nothing follows.
        stopping: is shown the written ids `[batch, written]`; says which rows are done.
        allowed: the only ids that are written; all if None.

    Yields:
        One id for each row; None for a row that is done, so for `end` too.
    """
    ends = {end} if isinstance(end, int) else set(end)
    mask, positions = inputs["attention_mask"], inputs["position_ids"][:, -1:]
    padded = not bool(mask.all())
    generator, warpers = (
        (sampling.random_generator(mask.device), sampling.logits_warpers()) if sampling else (None, None)
    )
    written, open_rows = [], set(range(len(mask)))
    for step in range(limit):
        logits = forward(inputs, cache).logits[:, -1].float()
        logits = logits if allowed is None else logits[:, allowed]
        token = draw_tokens(logits, warpers, generator) if sampling else logits.argmax(-1)
        token = token if allowed is None else allowed[token]
        ids = token.tolist()
        open_rows -= {row for row in open_rows if ids[row] in ends}
        yield [id if row in open_rows else None for row, id in enumerate(ids)]
        if stopping is not None:
            written.append(token)
            done = stopping(torch.stack(written, 1), logits)
            open_rows -= set(done.nonzero()[:, 0].tolist())
        if not open_rows or step + 1 == limit:
            return
        positions = positions + 1
        inputs = {"input_ids": token[:, None], "position_ids": positions}
        if padded:  # where nothing is padded, attention without a mask is the faster one
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
            inputs["attention_mask"] = mask


def draw_tokens(logits: torch.Tensor, warpers: LogitsProcessorList, generator) -> torch.Tensor:
    """One token a row `[batch]`."""
    return torch.multinomial(warpers(None, logits).softmax(-1), 1, generator=generator)[:, 0]


def branch_cache(cache: Cache, rows: int) -> Cache:
    """A cache of `rows` sequences that all go on from the one in `cache`, which stays as it is.

    Nothing is copied: growing layers put new tensors in place of theirs and never write into those that they have.
    """
    twin = copy(cache)
    twin.layers = [copy(layer) for layer in cache.layers]
    for layer in twin.layers:
        layer.keys, layer.values = (tensor.expand(rows, -1, -1, -1) for tensor in (layer.keys, layer.values))
    return twin


class FixedLayer(DynamicLayer):
    """Keys and values `[batch, heads, length, size]` that stay in place, as a captured step needs them.

    Args:
        like: a growing layer that has read a prompt. place: `[1]`, where the next token goes; shared by all layers.
    """

    def __init__(self, like: DynamicLayer, length: int, place: torch.Tensor):
        super().__init__()
        self.dtype, self.device, self.is_initialized, self.place = like.keys.dtype, like.keys.device, True, place
        self.keys, self.values = (
            tensor.new_zeros(*tensor.shape[:2], length, tensor.shape[-1]) for tensor in (like.keys, like.values)
        )

    def copy_states(self, grown: DynamicLayer) -> None:
        """Starts with what a growing layer read."""
        self.keys[:, :, : grown.keys.shape[2]] = grown.keys
        self.values[:, :, : grown.values.shape[2]] = grown.values

    def update(self, key_states, value_states, *args, **kwargs):
        self.keys.index_copy_(2, self.place, key_states)
        self.values.index_copy_(2, self.place, value_states)
        return self.keys, self.values
