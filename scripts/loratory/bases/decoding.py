"""Writing token after token: one loop for every model that reads a cache, and caches whose tensors stay in place."""

from collections.abc import Callable, Collection, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, cast, runtime_checkable

import torch
from transformers import (
    Cache,
    DynamicCache,
    DynamicLayer,
    EncoderDecoderCache,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.modeling_outputs import BaseModelOutput

from loratory.errors import InputError

COLDEST = 1e-6  # a lower temperature draws the likeliest token too, until logits over it are no numbers any more


@dataclass(frozen=True)
class Sampling:
    """How to draw the next token, by a generator of its own: nothing else that is random changes it.

    Attributes:
        temperature: logits are divided by it. top_k: only so many of the likeliest tokens are drawn from; None: all.
        top_p: the smallest set of tokens with this mass stays (Holtzman et al. 2020, arXiv:1904.09751).
        others: seeds of further parts of the batch, of as many rows as the first: each part is drawn as if alone.

    Raises:
        InputError: an option is out of its range.
    """

    seed: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    others: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise InputError("sampling", "temperature is not positive", self.temperature, "> 0; greedy: no sampling")
        if not 0 < self.top_p <= 1:
            raise InputError("sampling", "top_p is no share of probability", self.top_p, "in (0, 1]")
        if self.top_k is not None and self.top_k < 1:
            raise InputError("sampling", "top_k keeps no token", self.top_k, "at least 1")

    def token_draw(self, device: torch.device | str) -> Callable[[torch.Tensor], torch.Tensor]:
        """Chooses tokens `[batch]` by logits `[batch, vocabulary]`; each part of the batch has a generator of its own,
        which goes on from call to call."""
        generators = [torch.Generator(device).manual_seed(seed) for seed in (self.seed, *self.others)]
        return partial(draw_tokens, warpers=self.logits_warpers(), generators=generators)

    def logits_warpers(self) -> LogitsProcessorList:
        found = LogitsProcessorList([TemperatureLogitsWarper(max(float(self.temperature), COLDEST))])
        if self.top_k is not None:
            found.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1:
            found.append(TopPLogitsWarper(self.top_p))
        return found


@runtime_checkable
class Routed(Protocol):
    """What a mixture declares besides the call of the Hugging Face model that it wraps.

    Attributes:
        wants: names in a batch of what it takes besides the model's inputs.
    """

    wants: tuple[str, ...]

    def new_cache(self) -> Any:
        """An empty cache: one for its passes with experts, and one for those without."""


def new_cache(model: torch.nn.Module) -> Any:
    """An empty cache of the model's own kind: two caches for a mixture, the usual one for any other model."""
    return model.new_cache() if isinstance(model, Routed) else empty_cache(cast(PreTrainedModel, model))


def empty_cache(model: PreTrainedModel) -> Cache:
    """A growing cache of a Hugging Face model."""
    if model.config.is_encoder_decoder:
        return EncoderDecoderCache(DynamicCache(), DynamicCache())
    return DynamicCache()


def reorder_cache(cache: Any, rows: torch.Tensor) -> None:
    """Each row of a cache becomes what row `rows[i]` was; what an encoder said stays, as beams share it."""
    own: Any = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
    own.reorder_cache(rows)


def repeat_rows(encoded: Any, times: int) -> Any:
    """What an encoder made, each row so many times, one after another: a mixture's in its own way."""
    if isinstance(encoded, BaseModelOutput):
        states = cast(torch.Tensor, encoded.last_hidden_state)
        return BaseModelOutput(last_hidden_state=cast(torch.FloatTensor, states.repeat_interleave(times, 0)))
    return encoded.repeat_rows(times)


def decode_batch(
    forward: Callable,
    inputs: dict[str, Any],
    cache: Any,
    end: int | Collection[int],
    limit: int,
    sampling: Sampling | None = None,
    **options: Any,
) -> list[list[int]]:
    """The written ids of each row, without `end`; arguments are those of `decode_steps`."""
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
    inputs: dict[str, Any],
    cache: Any,
    end: int | Collection[int],
    limit: int,
    sampling: Sampling | None = None,
    stopping: StoppingCriteria | Callable | None = None,
    allowed: torch.Tensor | None = None,
) -> Iterator[list[int | None]]:
    """Continues a left-padded batch until every row is done or wrote `limit` tokens.

    A row is done with `end`, or with the token that fulfils `stopping`. A token is drawn for every row at each step,
    so what a row gets does not depend on when others are done.

    Args:
        forward: (inputs, cache) -> output with `.logits [batch, length, vocabulary]`; appends to the cache.
        inputs: first inputs: `attention_mask`, `position_ids`, and `input_ids` or `inputs_embeds`.
        end: the id, or ids, after which nothing follows.
        stopping: (written ids `[batch, written]`, logits `[batch, vocabulary]`) -> which rows are done `[batch]`.
        allowed: the only ids that are written; all if None.

    Yields:
        One id for each row; None for a row that is done, so for `end` too.
    """
    ends = {end} if isinstance(end, int) else set(end)
    mask, positions = inputs["attention_mask"], inputs["position_ids"][:, -1:]
    padded = not bool(mask.all())
    draw = sampling.token_draw(mask.device) if sampling else None
    written: list[torch.Tensor] = []
    open_rows = set(range(len(mask)))
    for step in range(limit):
        logits = forward(inputs, cache).logits[:, -1].float()
        logits = logits if allowed is None else logits[:, allowed]
        token = draw(logits) if draw else logits.argmax(-1)
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


def draw_tokens(
    logits: torch.Tensor, warpers: LogitsProcessorList, generators: Sequence[torch.Generator]
) -> torch.Tensor:
    """One token a row `[batch]`; each generator draws those of a part of the batch, all of one size."""
    ids = cast(torch.LongTensor, None)  # temperature, top_k and top_p look at logits alone
    shares = warpers(ids, cast(torch.FloatTensor, logits)).softmax(-1)
    parts = shares.view(len(generators), -1, shares.shape[-1])
    return torch.cat([torch.multinomial(part, 1, generator=own)[:, 0] for part, own in zip(parts, generators)])


def branch_cache(cache: Cache, rows: int) -> Cache:
    """A cache of `rows` sequences that all go on from the one in `cache`, which stays as it is.

    Nothing is copied: growing layers put new tensors in place of theirs and never write into those that they have.
    """
    twin = copy(cache)
    layers = [copy(cast(DynamicLayer, layer)) for layer in cache.layers]
    for layer in layers:
        layer.keys, layer.values = (tensor.expand(rows, -1, -1, -1) for tensor in stored_states(layer))
    twin.layers = [*layers]
    return twin


def stored_states(layer: DynamicLayer) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of a layer that has read a prompt."""
    assert layer.keys is not None and layer.values is not None
    return layer.keys, layer.values


class FixedLayer(DynamicLayer):
    """Keys and values `[batch, heads, length, size]` that stay in place, as a captured step needs them.

    Args:
        like: a growing layer that has read a prompt. place: `[1]`, where the next token goes; shared by all layers.
    """

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, like: DynamicLayer, length: int, place: torch.Tensor):
        super().__init__()
        states = stored_states(like)
        self.dtype, self.device, self.is_initialized, self.place = states[0].dtype, states[0].device, True, place
        self.keys, self.values = (tensor.new_zeros(*tensor.shape[:2], length, tensor.shape[-1]) for tensor in states)

    def copy_states(self, grown: DynamicLayer) -> None:
        """Starts with what a growing layer read."""
        keys, values = stored_states(grown)
        self.keys[:, :, : keys.shape[2]] = keys
        self.values[:, :, : values.shape[2]] = values

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.keys.index_copy_(2, self.place, key_states)
        self.values.index_copy_(2, self.place, value_states)
        return self.keys, self.values
