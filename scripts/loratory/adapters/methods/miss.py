"""MiSS: one small matrix that all shards of the input share (Kang & Yin, arXiv:2409.15371, v4 and later).

y = W x + Dᵀ S(x) with D `[rank, out]` = 0 and S(x) = Σ_b x[b·rank : (b+1)·rank], the sum of the input's contiguous
shards; so ΔW[:, j] = D[j mod rank]. Version 4 calls it Bone; version 1's Bone is `bat`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from loratory.adapters import contract
from loratory.errors import InputError

if TYPE_CHECKING:
    import torch

    from loratory.adapters.contract import Tensors
    from loratory.adapters.core import AdaptedLinear
    from loratory.adapters.deltas import LowRank


class Method(contract.Method):
    """y = W x + Dᵀ S(x). There is no alpha: the learning rate is the one knob."""

    replayable: ClassVar[bool] = True

    rank: int = Field(64, ge=1, description="features in a shard of the input, and rank of the update")
    mini: int | None = Field(
        None, ge=1, description="columns of D that are trained and repeated along the output; none trains all"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the adapter's input while training")

    def initial_tensors(self, weight: torch.Tensor, generator: torch.Generator) -> Tensors:
        import torch

        out, inner = weight.shape
        if self.rank > inner:
            raise InputError("layer", "rank is more than the layer's inputs", self.rank, f"at most {inner}")
        if self.mini and out % self.mini:
            raise InputError("layer", "mini does not divide the layer's outputs", self.mini, f"a divisor of {out}")
        return {"D": torch.zeros(self.rank, self.mini or out)}

    def layer_output(self, layer: AdaptedLinear, x: torch.Tensor) -> torch.Tensor:
        from torch.nn.functional import dropout

        y, d = layer.base(x), layer.tensors["D"]
        added = shard_sum(dropout(x.to(d.dtype), self.dropout, layer.training), self.rank) @ d
        return y + added.tile(y.shape[-1] // added.shape[-1]).to(x.dtype)

    def weight_delta(self, tensors: Tensors, weight: torch.Tensor) -> LowRank:
        import torch

        from loratory.adapters.deltas import LowRank

        (out, inner), d = weight.shape, tensors["D"]
        identity = torch.eye(self.rank, device=d.device)
        return LowRank(identity.tile(-(-inner // self.rank))[:, :inner], d.tile(out // d.shape[1]).T, 1.0)


def shard_sum(x: torch.Tensor, rank: int) -> torch.Tensor:
    """S(x): `[..., in]` → `[..., rank]`, the last shard filled up with zeros."""
    from torch.nn.functional import pad

    return pad(x, (0, -x.shape[-1] % rank)).unflatten(-1, (-1, rank)).sum(-2)
