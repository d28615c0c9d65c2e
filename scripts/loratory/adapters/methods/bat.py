"""Bat: a block-affine change of the weight by itself (Kang, arXiv:2409.15371v1, there called Bone).

With W cut into blocks W_ij of rank × rank (i along the output, j along the input): ΔW_ij = W_ij D_i + D_i, D = 0 at
first. ΔW has full rank in general, so it is stored as it is.
"""

from __future__ import annotations

from math import gcd
from typing import TYPE_CHECKING

from pydantic import Field

from loratory.adapters import contract
from loratory.errors import InputError

if TYPE_CHECKING:
    import torch

    from loratory.adapters.contract import Tensors
    from loratory.adapters.core import AdaptedLinear
    from loratory.adapters.deltas import Dense


class Method(contract.DenseMethod):
    """ΔW_ij = W_ij D_i + D_i with D `[out / rank, rank, rank]`. There is no alpha: the learning rate is the knob."""

    rank: int = Field(64, ge=1, description="side of a block; it must divide every target layer's inputs and outputs")

    def initial_tensors(self, weight: torch.Tensor, generator: torch.Generator) -> Tensors:
        import torch

        out, inner = weight.shape
        if gcd(out, inner) % self.rank:
            fits = next(rank for rank in range(self.rank, 0, -1) if gcd(out, inner) % rank == 0)
            expected = f"a divisor of its {inner} inputs and {out} outputs"
            raise InputError("layer", "rank does not divide the layer", self.rank, expected, f"rank: {fits}")
        return {"D": torch.zeros(out // self.rank, self.rank, self.rank)}

    def layer_output(self, layer: AdaptedLinear, x: torch.Tensor) -> torch.Tensor:
        from torch.nn.functional import linear

        d = layer.tensors["D"]
        return layer.base(x) + linear(x.to(d.dtype), block_affine(layer.weight, d)).to(x.dtype)

    def weight_delta(self, tensors: Tensors, weight: torch.Tensor) -> Dense:
        from loratory.adapters.deltas import Dense

        return Dense(block_affine(weight, tensors["D"]))


def block_affine(weight: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """ΔW of a weight `[out, in]`."""
    rank = d.shape[-1]
    rows = weight.to(d.dtype).reshape(len(d), -1, rank)  # [i, (row in the block, j), column in the block]
    return ((rows @ d).unflatten(1, (rank, -1)) + d[:, :, None]).reshape(weight.shape)
