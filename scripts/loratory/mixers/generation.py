"""Generation from a causal model or a mixture on one: batches, shared prefixes, and steps that a GPU replays.

All of it is exact but for `hold_after`: greedy tokens are those of running the whole text anew for each of them. Sums
of other shapes are rounded otherwise, so in half precision nearly equal tokens may change places.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import (
    Cache,
    DynamicCache,
    DynamicLayer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StopStringCriteria,
)

from loratory.bases.decoding import (
    FixedLayer,
    Sampling,
    branch_cache,
    collect_rows,
    decode_steps,
    empty_cache,
    new_cache,
)
from loratory.errors import InputError
from loratory.mixers.contract import GateInput
from loratory.mixers.core import Mixture, PairCache
from loratory.mixers.streams import TOKENS, bare_states

Model = PreTrainedModel | Mixture
BUCKET = 64  # tokens: lengths are rounded up to multiples of it, so that few shapes are captured


def generate(
    model: Model, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **options: Any
) -> list[list[int]]:
    """The ids that are written after each row, without the end token; arguments are those of `stream_tokens`."""
    return collect_rows(stream_tokens(model, input_ids, attention_mask, **options), len(input_ids))


def stream_tokens(
    model: Model,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    eos: int | Collection[int] | None = None,
    stop: Collection[str] = (),
    tokenizer: PreTrainedTokenizerBase | None = None,
    hold_after: int | None = None,
    prefix: Prefix | None = None,
    fixed: FixedSteps | None = None,
) -> Iterator[list[int | None]]:
    """Writes token after token; each step gives one id for each row, None for rows that are done.

    Args:
        model: a decoder-only Hugging Face model or a `Mixture` on one.
        input_ids, attention_mask: `[batch, length]`, padded on the left.
        sampling: greedy if not given.
        eos: after which ids a row is done; those of the model's config if not given, `()` for none.
        stop: a row is done with the token that completes one of these strings. tokenizer: that of the model.
        hold_after: an approximation: a mixture's gate weighs the prompt and so many written tokens, and its last
            weights stay, so that later tokens cost one pass. That of the mixture if not given; its None is exact.
        prefix: what comes before each row (see `run_prefix`).
        fixed: steps in place for batches of this size, which on a GPU are replayed as graphs.

    Raises:
        InputError: an option does not fit the model or the batch.
    """
    hold_after = getattr(model, "hold_after", None) if hold_after is None else hold_after
    check_request(model, attention_mask, stop, tokenizer, hold_after)
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
    rows, before = len(mask), 0
    cache = new_cache(model)
    if prefix is not None:
        cache, before = prefix.request_cache(model, rows), prefix.ids.shape[1]
        mask = torch.cat([mask.new_ones(rows, before), mask], 1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, before:]
    inputs = {"input_ids": input_ids, "attention_mask": mask, "position_ids": positions}

    def forward(inputs: dict[str, Any], cache: Cache | PairCache) -> Any:
        with override_hold_after(model, hold_after):
            return model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)

    if fixed is not None:
        fixed.check_batch(model, rows, mask.shape[1] + max_new_tokens)
        forward = fixed.wrap_forward(forward, hold_after)
    ends = model.config.eos_token_id if eos is None else eos
    stopping = StopStringCriteria(tokenizer, list(stop)) if stop and tokenizer is not None else None
    return decode_steps(forward, inputs, cache, () if ends is None else ends, max_new_tokens, sampling, stopping)


def check_request(
    model: Model,
    attention_mask: torch.Tensor | None,
    stop: Collection[str],
    tokenizer: PreTrainedTokenizerBase | None,
    hold_after: int | None,
) -> None:
    """Raises:
    InputError: the model is no decoder, rows are padded on the right, or an option lacks what it needs.
    """
    if model.config.is_encoder_decoder:
        raise InputError("generate", "the model has an encoder", type(model).__name__, "a decoder-only model")
    if attention_mask is not None and not bool(attention_mask[:, -1].all()):
        raise InputError("generate", "rows do not end with a token", expected="padding on the left")
    if stop and tokenizer is None:
        raise InputError("generate", "strings to stop at need a tokenizer", str(list(stop)), fix="give `tokenizer`")
    if hold_after is not None and (not isinstance(model, Mixture) or model.mixer.reads == "input"):
        what = "there are no weights of a whole pass to hold"
        raise InputError("generate: hold_after", what, hold_after, "a mixture that weighs before its pass")


@contextmanager
def override_hold_after(model: Model, hold_after: int | None) -> Iterator[None]:
    """The option of one request, for one pass: requests may take turns on a mixture."""
    if hold_after is None:
        yield
        return
    mixture = cast(Mixture, model)  # as `check_request` requires
    before, mixture.hold_after = mixture.hold_after, hold_after
    try:
        yield
    finally:
        mixture.hold_after = before


@dataclass(frozen=True)
class Prefix:
    """What many requests begin with, run once and never written to.

    Attributes:
        ids: `[1, length]`. states: the bare base's last hidden states `[1, length, hidden]`.
        bare: the cache of the bare pass, which every mixture on this base may share; None if none was needed.
        mixed: the cache of the pass with experts; None of a plain model.
    """

    ids: torch.Tensor
    states: torch.Tensor | None
    bare: Cache | None
    mixed: Cache | None = None

    def request_cache(self, model: Model, rows: int) -> Cache | PairCache:
        """A cache of `rows` requests that go on from here.

        Raises:
            InputError: the prefix was run without the mixture's experts, or with them and the model has none.
        """
        if isinstance(model, Mixture) != (self.mixed is not None):
            what = "the prefix was not run by this model"
            raise InputError("generate: prefix", what, type(model).__name__, fix="`run_prefix(model, ids, shared)`")
        bare = self.bare and branch_cache(self.bare, rows)
        return cast(Cache, bare) if self.mixed is None else PairCache(bare, branch_cache(self.mixed, rows))


@torch.no_grad()
def run_prefix(model: Model, ids: torch.Tensor, shared: Prefix | None = None) -> Prefix:
    """Runs what requests begin with.

    Args:
        ids: `[1, length]`. shared: the same ids run on the bare base, or by another mixture on it: its bare pass is
            not run again.

    Raises:
        InputError: `shared` is of other ids, or the mixture weighs whole prompts, so that no part of one is final.
    """
    if shared is not None and not torch.equal(shared.ids, ids):
        raise InputError("run_prefix: shared", "the shared prefix has other ids", shared.ids.tolist()[0])
    inputs = {"input_ids": ids, "use_cache": True}
    if not isinstance(model, Mixture):
        cache = empty_cache(model)
        return Prefix(ids, bare_states(model, inputs, cache)[TOKENS], cache)
    if model.mixer.per_sequence:
        raise InputError("run_prefix", "the mixer weighs a prompt as a whole", type(model.mixer).__module__)
    pair = model.new_cache()
    if shared is None and pair.bare is not None:
        shared = Prefix(ids, model.bare_states(inputs, pair.bare)[TOKENS], pair.bare)
    states, bare = (shared.states, shared.bare) if shared is not None and pair.bare is not None else (None, None)
    model(**inputs, hidden=states, past_key_values=PairCache(bare, pair.mixed), logits_to_keep=1)
    return Prefix(ids, states, bare, pair.mixed)


class FixedSteps:
    """Steps of one token on tensors that stay in place, so that a GPU can replay one as a graph.

    The prompt runs as ever; its caches are then copied into place. Made once, it serves any number of requests of
    `rows` rows, one after another: a new one ends the one before. The first step of its kind (weights computed or
    held) runs as it is and warms up, the second is captured; where that fails, as something waits for the GPU, all go
    on as they are.

    Args:
        model: decoder-only, with full attention in all layers; may be a `Mixture`.
        length: the most tokens of a row, written ones included.
        capture: replay graphs; on GPUs alone, where it is the default.
        compiled: `torch.compile` joins the small kernels of a step; its first use takes a minute for 16 layers.

    Raises:
        InputError: the model's attention is not full.
    """

    def __init__(self, model: Model, rows: int, length: int, capture: bool | None = None, compiled: bool = False):
        check_attention(model.config)
        self.model, self.rows, self.length = model, rows, length
        self.mixture = model if isinstance(model, Mixture) else None
        self.base: PreTrainedModel = model.model if isinstance(model, Mixture) else model
        device = self.base.device
        self.capture = device.type == "cuda" if capture is None else capture
        self.token = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self.positions, self.place = torch.zeros_like(self.token), torch.zeros_like(self.token[0])
        shape, dtype = (rows, 1, 1, -(-length // 8) * 8), self.base.dtype  # attention kernels want multiples of 8
        self.hidden_from = torch.finfo(dtype).min
        self.mask = torch.full(shape, self.hidden_from, dtype=dtype, device=device)
        self.cache: Cache | PairCache | None = None
        self.caches: list[DynamicCache] = []
        self.weights_buffer: torch.Tensor | None = None
        self.graphs: dict[tuple, Any] = {}
        self.calls = 0
        self.request: Callable | None = None
        self.quick_step = torch.compile(self.run_step, dynamic=False) if compiled else self.run_step

    @property
    def pair(self) -> PairCache:
        """The two caches of a mixture."""
        return cast(PairCache, self.cache)

    def check_batch(self, model: Model, rows: int, length: int) -> None:
        """Raises:
        InputError: the request is of another model or does not fit.
        """
        if model is not self.model:
            raise InputError("generate: fixed", "the steps are those of another model")
        if rows != self.rows or length > self.length:
            asked, made = f"{rows} rows of {length} tokens", f"{self.rows} rows of at most {self.length}"
            raise InputError("generate: fixed", "the batch does not fit the steps", asked, made)

    def wrap_forward(self, forward: Callable, hold_after: int | None) -> Callable:
        """`forward` for the prompt, and the steps in place for what follows."""
        started = False

        def fixed_forward(inputs: dict[str, Any], cache: Cache | PairCache) -> Any:
            nonlocal started
            if started:
                if self.request is not fixed_forward:
                    raise RuntimeError("another request has taken over these steps")
                return self(inputs["input_ids"], hold_after)
            output, started = forward(inputs, cache), True
            self.start_request(cache, inputs["attention_mask"], inputs["position_ids"])
            self.request = fixed_forward
            return output

        return fixed_forward

    def start_request(self, cache: Cache | PairCache, mask: torch.Tensor, positions: torch.Tensor) -> None:
        """Takes over what a prompt's pass left in growing caches."""
        grown = (cache.bare, cache.mixed) if isinstance(cache, PairCache) else (cache,)
        self.copy_caches([each for each in grown if each is not None])
        self.mask.fill_(self.hidden_from)
        self.mask[:, 0, 0, : mask.shape[1]].masked_fill_(mask.bool(), 0.0)
        self.positions.copy_(positions[:, -1:] + 1)
        self.place.fill_(mask.shape[1])
        self.cache = self.caches[0]
        if self.mixture is not None and isinstance(cache, PairCache):
            bare = self.caches[0] if cache.bare is not None else None
            held = cache.fixed_weights
            if self.mixture.mixer.reads == "nothing":  # what is written is text, whatever the prompt ends with
                held = self.mixture.weights_from_states(None, GateInput(domain=self.mixture.domain))[TOKENS]
            self.cache, self.calls = PairCache(bare, self.caches[-1], held), cache.calls
            self.store_held_weights()

    def copy_caches(self, grown: list[Cache]) -> None:
        if not self.caches:
            self.caches = [DynamicCache() for _ in grown]
            for fixed, like in zip(self.caches, grown):
                layers = (cast(DynamicLayer, layer) for layer in like.layers)
                fixed.layers = [FixedLayer(layer, self.mask.shape[-1], self.place) for layer in layers]
        for fixed, like in zip(self.caches, grown):
            for layer, part in zip(fixed.layers, like.layers):
                cast(FixedLayer, layer).copy_states(cast(DynamicLayer, part))

    def __call__(self, token: torch.Tensor, hold_after: int | None) -> Any:
        """The model's output for one more token `[rows, 1]`; a replayed one is overwritten by the next."""
        self.token.copy_(token)
        self.calls += 1
        weighs = self.mixture is not None and self.pair.fixed_weights is None
        if weighs and self.calls - 1 == hold_after:
            return self.step_and_hold(hold_after)
        kind = (weighs, self.mixture and self.mixture.domain)
        if not self.capture or kind not in self.graphs:
            self.graphs.setdefault(kind, None)
            return self.quick_step()
        if self.graphs[kind] is None:
            try:
                self.graphs[kind] = self.capture_step()
            except RuntimeError as error:
                print(f"steps are not replayed: {str(error).splitlines()[0]}", flush=True)
                self.capture = False
                return self.quick_step()
        graph, output = self.graphs[kind]
        graph.replay()
        return output

    def step_and_hold(self, hold_after: int) -> Any:
        """A step after which the mixture's weights stay; never captured, as it changes more than tensors."""
        self.pair.calls = hold_after
        with override_hold_after(self.model, hold_after):
            output = self.run_step()
        self.store_held_weights()
        return output

    def store_held_weights(self) -> None:
        """Held weights of all requests have one place, where graphs look for them."""
        if self.pair.fixed_weights is None:
            return
        if self.weights_buffer is None:
            self.weights_buffer = self.pair.fixed_weights.clone()
        self.pair.fixed_weights = self.weights_buffer.copy_(self.pair.fixed_weights)

    def capture_step(self) -> tuple[torch.cuda.CUDAGraph, Any]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = self.quick_step()
        return graph, output

    def run_step(self) -> Any:
        self.mask.index_fill_(-1, self.place, 0.0)
        output = self.model(
            input_ids=self.token,
            attention_mask=self.mask,
            position_ids=self.positions,
            past_key_values=self.cache,
            use_cache=True,
        )
        self.positions.add_(1)
        self.place.add_(1)
        if isinstance(self.cache, PairCache):
            self.cache.calls = 0  # steps are alike: what a compiler sees change, it compiles anew
        return output


class StepsByShape:
    """`FixedSteps` of one model for batch after batch: made and captured anew only where the shape changes.

    Lengths are rounded up to multiples of `BUCKET`, so batches that come by length share most. The latest steps alone
    are kept. The model must stay as it is: what is put on it or taken off it needs steps of its own.

    Args:
        capture: see `FixedSteps`.

    Raises:
        InputError: the model's attention is not full.
    """

    def __init__(self, model: Model, capture: bool | None = None):
        check_attention(model.config)
        self.model, self.capture = model, capture
        self.latest: FixedSteps | None = None

    def __call__(self, forward: Callable, rows: int, length: int) -> Callable:
        """`forward` for a prompt of `rows` rows, and steps in place for what follows, up to `length` tokens in all."""
        length = -(-length // BUCKET) * BUCKET
        if self.latest is None or (self.latest.rows, self.latest.length) != (rows, length):
            self.latest = None  # frees its caches before the next ones are made
            self.latest = FixedSteps(self.model, rows, length, self.capture)
        return self.latest.wrap_forward(forward, getattr(self.model, "hold_after", None))


def check_attention(config: PretrainedConfig) -> None:
    """Raises:
    InputError: layers attend to a part of the text alone, or to an encoder; one mask for all of them would be wrong.
    """
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    sliding = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    if config.is_encoder_decoder or sliding or kinds != {"full_attention"}:
        raise InputError("FixedSteps", "not full attention in all layers", config.model_type, "leave `fixed` away")
