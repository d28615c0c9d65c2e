"""Linear layers with stacked experts, under an explicit gate context.

y = x Wᵀ + ((x Acatᵀ) ⊙ λ[rank → expert]) Bcatᵀ: two products for any number of experts of any ranks. Where
factors are mixed, x Acatᵀ is summed over experts, under λ, before each gets it: y = x Wᵀ + x (Σ λ A)ᵀ (Σ λ B)ᵀ.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from loratory.adapters.deltas import LowRank
from loratory.bases.precision import computing_dtype
from loratory.mixers.contract import Mixer

Linear = nn.Linear | Conv1D


class LayerWeights(Protocol):
    """The weights of one pass: of (layer, its input), `[batch | 1, length | 1, experts or ranks]`."""

    def __call__(self, layer: MixedLinear, x: torch.Tensor) -> torch.Tensor: ...

    def recompute_copy(self) -> LayerWeights:
        """The same weights, for a pass that is repeated in the backward pass."""


class GateContext:
    """The weights in force: set by the mixture before a pass, read by every mixed layer; None for the bare base."""

    def __init__(self) -> None:
        self.weights: LayerWeights | None = None
        self.is_open = False

    @contextmanager
    def use_weights(self, weights: LayerWeights | None) -> Iterator[None]:
        before = self.weights, self.is_open
        self.weights, self.is_open = weights, True
        try:
            yield
        finally:
            self.weights, self.is_open = before


class MixedLinear(nn.Module):
    """A frozen linear layer and all experts' changes of it, stacked along the rank.

    Args:
        slot: place of the layer `name` among the mixed ones.
        deltas: of each expert, None where it leaves this layer alone.
        mixer: says whether experts move, and whether weights are of experts or of ranks.
    """

    owner: torch.Tensor
    scale: torch.Tensor
    A: torch.Tensor
    B: torch.Tensor

    def __init__(
        self, base: Linear, name: str, slot: int, context: GateContext, deltas: list[LowRank | None], mixer: Mixer
    ):
        super().__init__()
        self.base, self.name, self.slot, self.context = base, name, slot, context
        self.moves, self.by_rank, self.mixes_factors = mixer.trains_experts, mixer.by_rank, mixer.mixes_factors
        present = [(i, delta) for i, delta in enumerate(deltas) if delta is not None]
        ranks = {delta.rank for _, delta in present}
        self.rank = ranks.pop() if len(present) == len(deltas) and len(ranks) == 1 else None  # that all experts have
        like, dtype = base.weight, computing_dtype(base)
        a = torch.cat([delta.A for _, delta in present]).to(like.device)
        b = torch.cat([delta.B.float() for _, delta in present], 1).to(like.device)
        scale = torch.cat([torch.full((delta.rank,), float(delta.scale)) for _, delta in present]).to(like.device)
        owner = torch.cat([torch.full((delta.rank,), i) for i, delta in present]).to(like.device)
        self.register_buffer("owner", owner)  # expert of each rank
        self.register_buffer("scale", scale)  # of each rank
        if self.moves:  # scales stay apart: folded in, they would change what an optimizer's step does
            self.A, self.B = nn.Parameter(a.float()), nn.Parameter(b)  # [Σ rank, in], [out, Σ rank]
        else:
            self.register_buffer("A", a.to(dtype))
            self.register_buffer("B", (b * scale).to(dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.context.is_open:
            raise RuntimeError("a mixed layer was called outside its mixture: no gate is set")
        y = self.base(x)
        if self.context.weights is None:
            return y
        inner = linear(x, self.A.to(x.dtype))
        inner = self.scale_ranks(inner, self.context.weights(self, x).to(inner.dtype))
        if self.moves:
            inner = inner * self.scale.to(inner.dtype)
        return y + linear(inner, self.B.to(inner.dtype))

    def scale_ranks(self, inner: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Each rank of `inner [batch, length, Σ rank]` times the weight of its expert; see `Mixer.mixes_factors`."""
        if self.by_rank:
            return inner * weights
        if self.rank is None:
            return inner * weights.index_select(-1, self.owner)
        scaled = inner.unflatten(-1, (-1, self.rank)) * weights[..., None]
        if self.mixes_factors:  # of Σ λₖ Aₖ x, a part for each Bₖ
            scaled = scaled.sum(-2, keepdim=True) * weights[..., None]
        return scaled.flatten(-2)

    def current_delta(self, expert: int, scale: float) -> LowRank:
        """The change of one of the experts that move, as it is now."""
        own = self.owner == expert
        return LowRank(self.A.detach()[own], self.B.detach()[:, own], scale)
