"""ALLoRA: LoRA without dropout and scale, but with a learning rate for each output row (arXiv:2410.09692).

y = W x + B A x. In the backward pass alone, G = ∂L/∂(B A) is replaced by diag(c) G for A and B, with
c_i = 1 / √(‖(B A)_i‖ + 1/η²): rows that are still small move fast. The norm itself, not its square, is under the root;
c counts as a constant; the gradient that reaches x stays the true one.
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
    """y = W x + B A x with A `[rank, in]` ~ U(±1/√in) and B `[out, rank]` = 0, and with gradients of A and B in which
    each output row i weighs c_i = 1 / √(‖(B A)_i‖ + 1/η²)."""

    replayable: ClassVar[bool] = True

    rank: int = Field(16, ge=1, description="rank of the update")
    eta: float = Field(2.0, gt=0, description="η, the weight of a row whose update is zero, and the largest one")

    def initial_tensors(self, weight: torch.Tensor, generator: torch.Generator) -> Tensors:
        import torch

        out, inner = weight.shape
        a = torch.empty(self.rank, inner).uniform_(-1 / sqrt(inner), 1 / sqrt(inner), generator=generator)
        return {"A": a, "B": torch.zeros(out, self.rank)}

    def forward(self, x: torch.Tensor, tensors: Tensors, training: bool) -> torch.Tensor:
        from torch.nn.functional import linear

        a, b = tensors["A"], tensors["B"]
        value = linear(linear(x, a.detach()), b.detach())  # the gradient of x
        learned = linear(linear(x.detach(), a), b) * self.row_weights(a, b)  # the gradients of A and B
        return value + (learned - learned.detach())

    def row_weights(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """c `[out]`, by way of A Aᵀ, so that B A `[out, in]` is never formed."""
        import torch

        with torch.no_grad(), torch.autocast(a.device.type, enabled=False):
            norms = (b @ (a @ a.T) * b).sum(dim=1).clamp_min(0).sqrt()
            return torch.rsqrt(norms + 1 / self.eta**2)

    def weight_delta(self, tensors: Tensors, weight: torch.Tensor) -> LowRank:
        from loratory.adapters.deltas import LowRank

        return LowRank(tensors["A"], tensors["B"], 1.0)
