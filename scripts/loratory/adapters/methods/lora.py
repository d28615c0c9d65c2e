"""LoRA: a trained low-rank product beside each frozen weight (Hu et al. 2021, arXiv:2106.09685).

With `lr_ratio` it is LoRA+ (Hayou et al. 2024, arXiv:2402.12354): B learns faster than A.
"""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from loratory.adapters import contract

if TYPE_CHECKING:
    import torch

    from loratory.adapters.contract import Parameters, Tensors
    from loratory.adapters.deltas import Dense, LowRank
    from loratory.training.session import AdapterSession


class Method(contract.Method):
    """y = W x + s · B A x with A `[rank, in]` ~ U(±1/√in), B `[out, rank]` = 0 and s = alpha / rank."""

    replayable: ClassVar[bool] = True

    rank: int = Field(8, ge=1, description="rank of the update")
    alpha: float = Field(16.0, gt=0, description="scale numerator; the update is multiplied by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the adapter's input while training")
    lr_ratio: float = Field(1.0, gt=0, description="learning rate of B over that of A; LoRA+ takes 16")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def initial_tensors(self, weight: torch.Tensor, generator: torch.Generator) -> Tensors:
        import torch

        out, inner = weight.shape
        a = torch.empty(self.rank, inner).uniform_(-1 / sqrt(inner), 1 / sqrt(inner), generator=generator)
        return {"A": a, "B": torch.zeros(out, self.rank)}

    def forward(self, x: torch.Tensor, tensors: Tensors, training: bool) -> torch.Tensor:
        from torch.nn.functional import dropout, linear

        x = dropout(x, self.dropout, training)
        return linear(linear(x, tensors["A"]) * self.scale, tensors["B"])  # scaled where it is narrow

    def weight_delta(self, tensors: Tensors, weight: torch.Tensor) -> LowRank | Dense:
        from loratory.adapters.deltas import LowRank

        return LowRank(tensors["A"], tensors["B"], self.scale)

    def create_optimizer(self, session: AdapterSession, parameters: Parameters) -> torch.optim.Optimizer:
        if self.lr_ratio == 1:
            return session.adamw_optimizer(parameters)
        fast = {name: p for name, p in parameters.items() if name.endswith(".adapter.B")}
        slow = [p for name, p in parameters.items() if name not in fast]
        return session.adamw_optimizer(
            [{"params": slow, "ratio": 1.0}, {"params": list(fast.values()), "ratio": self.lr_ratio}]
        )
