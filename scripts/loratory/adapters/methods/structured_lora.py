"""StructuredLoRA: a square matrix between the two factors of LoRA (arXiv:2502.14482, there called SLoRA).

y = W x + s · B N A x with N `[rank, rank]`. A and N start as in the released code (the paper's figure draws A from a
normal distribution). Methods that derive from it differ in where the factors come from and which of them are trained.
"""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from loratory.adapters import contract

if TYPE_CHECKING:
    import torch

    from loratory.adapters.contract import Tensors
    from loratory.adapters.deltas import LowRank


class Method(contract.Method):
    """y = W x + s · B N A x with A `[rank, in]` ~ U(±1/√in), N `[rank, rank]` ~ U(±1/√rank), B `[out, rank]` = 0 and
    s = alpha / rank."""

    replayable: ClassVar[bool] = True

    rank: int = Field(128, ge=1, description="rank of the update")
    alpha: float = Field(128.0, gt=0, description="scale numerator; the update is multiplied by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the adapter's input while training")

    def initial_tensors(self, weight: torch.Tensor, generator: torch.Generator) -> Tensors:
        import torch

        def uniform_matrix(rows: int, columns: int) -> torch.Tensor:
            bound = 1 / sqrt(columns)
            return torch.empty(rows, columns).uniform_(-bound, bound, generator=generator)

        out, inner = weight.shape
        return {
            "A": uniform_matrix(self.rank, inner),
            "N": uniform_matrix(self.rank, self.rank),
            "B": torch.zeros(out, self.rank),
        }

    def low_rank_delta(self, tensors: Tensors) -> LowRank:
        """The change of W; the forward pass goes through it, so what is trained is what is stored."""
        from loratory.adapters.deltas import LowRank

        return LowRank(tensors["A"], tensors["B"] @ tensors["N"], self.alpha / self.rank)

    def forward(self, x: torch.Tensor, tensors: Tensors, training: bool) -> torch.Tensor:
        from torch.nn.functional import dropout, linear

        change = self.low_rank_delta(tensors)
        return linear(linear(dropout(x, self.dropout, training), change.A) * change.scale, change.B)

    def weight_delta(self, tensors: Tensors, weight: torch.Tensor) -> LowRank:
        return self.low_rank_delta(tensors)
