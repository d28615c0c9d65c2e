"""A low-rank pair that starts away from zero and whose start is taken off again.

y = W x + s (B A − B₀ A₀) x from A = A₀ and B = B₀. The papers subtract s B₀ A₀ from W before training; here W stays as
it is and the start is subtracted in the forward pass. That is the same function without the rounding of a changed W
in half precision, and the difference, of twice the rank, is an adapter of the original base.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from loratory.adapters import contract

if TYPE_CHECKING:
    import torch

    from loratory.adapters.contract import Parameters, Tensors
    from loratory.adapters.deltas import LowRank
    from loratory.training.session import AdapterSession


class OffsetMethod(contract.Method):
    """y = W x + s (B A − B₀ A₀) x with A, A₀ `[rank, in]`, B, B₀ `[out, rank]` and s = alpha / rank."""

    replayable: ClassVar[bool] = True
    fixed: ClassVar[frozenset[str]] = frozenset({"A0", "B0"})

    rank: int = Field(8, ge=1, description="rank of the update in training; it is stored with twice this rank")
    alpha: float = Field(8.0, gt=0, description="scale numerator; the pair is multiplied by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the trained pair's input while training")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def pair_tensors(self, a: torch.Tensor, b: torch.Tensor) -> Tensors:
        """The trained pair and, as copies, its start."""
        return {"A": a, "B": b, "A0": a.clone(), "B0": b.clone()}

    def zero_tensors(self, weight: torch.Tensor) -> Tensors:
        """Of a weight `[out, in]` whose start `prepare_training` fills in."""
        return self.pair_tensors(
            weight.new_zeros(self.rank, weight.shape[1]), weight.new_zeros(len(weight), self.rank)
        )

    def forward(self, x: torch.Tensor, tensors: Tensors, training: bool) -> torch.Tensor:
        from torch.nn.functional import dropout, linear

        now = linear(linear(dropout(x, self.dropout, training), tensors["A"]), tensors["B"])
        return self.scale * (now - linear(linear(x, tensors["A0"]), tensors["B0"]))

    def weight_delta(self, tensors: Tensors, weight: torch.Tensor) -> LowRank:
        import torch

        from loratory.adapters.deltas import LowRank

        a = torch.cat([tensors["A"], tensors["A0"]])
        return LowRank(a, torch.cat([tensors["B"], -tensors["B0"]], dim=1), self.scale)

    def create_optimizer(self, session: AdapterSession, parameters: Parameters) -> torch.optim.Optimizer:
        """Without decay of A and B: it would pull B A, but not B₀ A₀, towards 0 and so move the base."""
        return session.adamw_without_decay(lambda name: name.endswith((".adapter.A", ".adapter.B")), parameters)
