"""NLoRA: StructuredLoRA that starts from slices of the weight, as in Nyström's method (arXiv:2502.14482).

With r = rank: A = W[:r, :], B = W[:, :r], N = W[:r, :r], y = W x + s · B N A x. As in the released code, N is the
block itself, though Nyström's W ≈ B N⁺ A has its pseudo-inverse, and the start is not taken off the base: a fresh
adapter changes the outputs by s · B N A x. `middle: pinv` and `offset_base: true` are a project interpretation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from loratory.adapters.methods import structured_lora

if TYPE_CHECKING:
    import torch

    from loratory.adapters.contract import Parameters, Tensors
    from loratory.adapters.deltas import LowRank
    from loratory.training.session import AdapterSession


class Method(structured_lora.Method):
    """y = W x + s · B N A x with A = W[:r, :], B = W[:, :r] and N = W[:r, :r] at the start, all trained; r = rank and
    s = alpha / rank."""

    fixed: ClassVar[frozenset[str]] = frozenset({"A0", "B0"})

    middle: Literal["block", "pinv"] = Field(
        "block", description="start of N: the block of W, as published, or its pseudo-inverse"
    )
    offset_base: bool = Field(
        False, description="take the start off again, so that a fresh adapter changes nothing; not as published"
    )

    def initial_tensors(self, weight: torch.Tensor, generator: torch.Generator) -> Tensors:
        from loratory.adapters.spectrum import check_rank

        check_rank(self.rank, weight)
        factors = self.weight_slices(weight)
        return factors | self.offset_tensors(factors) if self.offset_base else factors

    def weight_slices(self, weight: torch.Tensor) -> Tensors:
        """Copies: training must not reach W through them."""
        import torch

        block = weight[: self.rank, : self.rank]
        middle = torch.linalg.pinv(block) if self.middle == "pinv" else block.clone()
        return {"A": weight[: self.rank].clone(), "N": middle, "B": weight[:, : self.rank].clone()}

    def offset_tensors(self, factors: Tensors) -> Tensors:
        """What of the start the offset needs."""
        return {"A0": factors["A"].clone(), "B0": factors["B"] @ factors["N"]}

    def low_rank_delta(self, tensors: Tensors) -> LowRank:
        now = super().low_rank_delta(tensors)
        return self.subtract_start(now, tensors) if self.offset_base else now

    def subtract_start(self, change: LowRank, tensors: Tensors) -> LowRank:
        """The change less that of the start: one of twice the rank."""
        import torch

        from loratory.adapters.deltas import LowRank

        a = torch.cat([change.A, tensors["A0"]])
        b = torch.cat([change.B, -tensors["B0"]], dim=1)
        return LowRank(a, b, change.scale)

    def create_optimizer(self, session: AdapterSession, parameters: Parameters) -> torch.optim.Optimizer:
        if not self.offset_base:
            return session.adamw_optimizer(parameters)
        # Decay of the factors would pull the sum towards minus the start instead of towards the base.
        return session.adamw_without_decay(lambda name: ".adapter." in name, parameters)
