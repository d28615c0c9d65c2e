"""Stacked experts under an explicit gate context, and the two passes of a mixture.

y = x Wᵀ + ((x Acatᵀ) ⊙ λ[rank → expert]) Bcatᵀ: two products for any number of experts of any ranks.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import linear
from transformers import DynamicCache

from loratory.adapters.core import check_shape, linear_layers
from loratory.adapters.deltas import Adapter, LowRank
from loratory.errors import InputError
from loratory.mixers.contract import Mixer, Sizes
from loratory.registry import unknown


class GateContext:
    """The weights in force: set by the mixture before a pass, read by every mixed layer.

    `weights` is `[batch | 1, length | 1, modules | 1, experts]`, or None for the bare base.
    """

    def __init__(self):
        self.weights: torch.Tensor | None = None
        self.open = False

    def set(self, weights: torch.Tensor | None):
        self.weights, self.open = weights, True

    def close(self):
        self.weights, self.open = None, False


class MixedLinear(nn.Module):
    """A frozen linear layer and all experts' changes of it, stacked along the rank."""

    def __init__(self, base: nn.Module, slot: int, context: GateContext, deltas: list[LowRank | None]):
        super().__init__()
        self.base, self.slot, self.context = base, slot, context
        present = [(i, delta) for i, delta in enumerate(deltas) if delta is not None]
        like = base.weight
        stack_a = torch.cat([delta.A for _, delta in present])
        stack_b = torch.cat([delta.B.float() * delta.scale for _, delta in present], 1)
        owner = torch.cat([torch.full((delta.rank,), i) for i, delta in present])
        self.register_buffer("A", stack_a.to(like.device, like.dtype))  # [Σ rank, in]
        self.register_buffer("B", stack_b.to(like.device, like.dtype))  # [out, Σ rank], scales folded in
        self.register_buffer("owner", owner.to(like.device))  # expert of each rank

    def forward(self, x):
        if not self.context.open:
            raise RuntimeError("a mixed layer was called outside its mixture: no gate is set")
        y, weights = self.base(x), self.context.weights
        if weights is None:
            return y
        weights = weights[..., min(self.slot, weights.shape[-2] - 1), :]
        gains = weights.index_select(-1, self.owner).to(x.dtype)
        return y + linear(linear(x, self.A) * gains, self.B)


@dataclass
class PairCache:
    """One cache for the pass without experts and one for the pass with them: never to be shared."""

    bare: DynamicCache
    mixed: DynamicCache


class Mixture(nn.Module):
    """A causal base with stacked experts and a mixer; called like the Hugging Face model it wraps.

    Exact with caches: the gate of a token depends on the base's states of that token and those before it, so two
    caches give the same numbers as running the whole prefix anew.

    Attributes:
        names: experts in the order of the gate's outputs. domain: set before a batch, for the oracle alone.
        last_weights: weights of the latest pass, for the mixer's penalty and for routing reports.
    """

    def __init__(self, model, experts: dict[str, Adapter], mixer: Mixer, where="mixture"):
        super().__init__()
        self.model, self.names, self.mixer = model, list(experts), mixer
        self.context, self.domain, self.last_weights = GateContext(), None, None
        check_experts(model, experts, where)
        adapted = sorted({name for adapter in experts.values() for name in adapter.deltas})
        layers = linear_layers(model)
        for slot, name in enumerate(adapted):
            deltas = [adapter.deltas.get(name) for adapter in experts.values()]
            model.set_submodule(name, MixedLinear(layers[name], slot, self.context, deltas))
        self.sizes = Sizes(len(experts), len(adapted), model.config.hidden_size)
        model.requires_grad_(False)
        self.gate = mixer.gate(self.sizes)
        if self.gate is not None:
            self.gate.to(model.device)

    def train(self, mode: bool = True):
        """Only the gate trains: dropout in a frozen base or expert would blur what the gate is told."""
        super().train(False)
        if self.gate is not None:
            self.gate.train(mode)
        return self

    def new_cache(self) -> PairCache:
        return PairCache(DynamicCache(), DynamicCache())

    def forward(self, past_key_values: PairCache | None = None, use_cache=False, logits_to_keep=0, **inputs):
        bare, mixed = (past_key_values.bare, past_key_values.mixed) if past_key_values else (None, None)
        try:
            self.last_weights = self.weigh(inputs, bare, use_cache)
            self.context.set(self.last_weights)
            kept = {"past_key_values": mixed, "use_cache": use_cache, "logits_to_keep": logits_to_keep}
            return self.model(**inputs, **kept)
        finally:
            self.context.close()

    def weigh(self, inputs, cache=None, use_cache=False) -> torch.Tensor:
        """The experts' weights `[batch, length, modules | 1, experts]` alone, without the pass that uses them."""
        hidden = self.bare_states(inputs, cache, use_cache) if self.mixer.reads_hidden else None
        return self.mixer.weights(self.gate, hidden, self.sizes, self.domain).to(self.model.device)

    @torch.no_grad()
    def bare_states(self, inputs, cache=None, use_cache=False) -> torch.Tensor:
        """The base's last hidden states `[batch, length, hidden]`, computed without experts and without the head."""
        self.context.set(None)
        try:
            found = self.model.base_model(**inputs, past_key_values=cache, use_cache=use_cache)
        finally:
            self.context.close()
        return found.last_hidden_state

    def unwrap(self):
        """Takes the experts off the model again."""
        for name, module in list(self.model.named_modules()):
            if isinstance(module, MixedLinear):
                self.model.set_submodule(name, module.base)


def check_experts(model, experts: dict[str, Adapter], where) -> None:
    """Raises:
    InputError: too few experts; one that is untrained (B = 0 gives its gate no gradient), that brings its own head,
        is not low-rank, or does not fit the base.
    """
    if len(experts) < 2:
        raise InputError(where, "too few experts", len(experts), "at least 2")
    layers = linear_layers(model)
    for name, adapter in experts.items():
        if adapter.heads:
            raise InputError(f"{where}:{name}", "the expert has its own head", next(iter(adapter.heads)), "none")
        if adapter.dense or adapter.own:
            what, first = "the change is not low-rank", next(iter(adapter.dense | adapter.own))
            raise InputError(
                f"{where}:{name}", what, first, "LoRA-like experts", "set `export_rank` where there is one"
            )
        if not any(delta.B.any() for delta in adapter.deltas.values()):
            raise InputError(f"{where}:{name}", "the expert is untrained (B = 0)", fix="train it before the gate")
        for module, delta in adapter.deltas.items():
            if module not in layers:
                raise unknown(f"{where}:{name}", "linear layer of this base", module, layers)
            check_shape(f"{where}:{name}", module, layers[module], delta)
