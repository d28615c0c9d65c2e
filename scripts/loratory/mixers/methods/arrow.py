"""Arrow: each layer routes each token to the experts whose main input direction it resembles; nothing is trained.

Ostapenko et al. 2024, arXiv:2405.11157. Prototype p_i of an expert in a layer is the top right singular vector of
B_i A_i, the direction of input that the expert changes most; a singular vector has no sign, so

    λ = softmax over the top k of |x · p_i| / temperature

PEFT finds p_i by 15 steps of power iteration, here it is exact. PEFT's subtraction of a general adapter (GenKnowSub)
is another method and not part of this. An expert that leaves a layer alone has no say there: project interpretation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from loratory.mixers import contract
from loratory.mixers.routing import keep_largest, normalise_weights

if TYPE_CHECKING:
    import torch

    from loratory.adapters.deltas import Adapter, LowRank
    from loratory.mixers.contract import GateInput, GateShape, Reads


class Mixer(contract.Mixer):
    """λ = top_k(softmax(|x · p_i| / temperature)), made to sum to 1."""

    trained: ClassVar[bool] = False
    reads: ClassVar[Reads] = "input"

    top_k: int | None = Field(3, ge=1, description="experts of a token and layer that are kept; none keeps all")
    temperature: float = Field(1.0, gt=0, description="softmax temperature")

    def build_gate(self, sizes: GateShape) -> torch.nn.Module:
        """Prototypes of each layer, `[experts, width]` under its number; 0 where an expert has none."""
        import torch

        gate = torch.nn.Module()
        for layer, width in enumerate(sizes.widths):
            gate.register_buffer(str(layer), torch.zeros(sizes.experts, width))
        return gate

    def prepare_gate(self, gate: torch.nn.Module, sizes: GateShape, experts: dict[str, Adapter]) -> None:
        for layer, module in enumerate(sizes.modules):
            for prototype, adapter in zip(gate.get_buffer(str(layer)), experts.values()):
                if module in adapter.deltas:
                    prototype.copy_(main_direction(adapter.deltas[module]))

    def routing_weights(self, gate: Any, seen: GateInput, sizes: GateShape) -> torch.Tensor:
        import torch

        prototypes = gate.get_buffer(str(seen.layer))
        assert seen.input is not None  # as the mixer reads `input`
        alike = (seen.input.float() @ prototypes.T).abs() / self.temperature
        # the least number and not −inf: where no expert has a prototype, all weigh alike and nothing is NaN
        return alike.masked_fill(~prototypes.any(1), torch.finfo(alike.dtype).min).softmax(-1)

    def select_weights(self, weights: torch.Tensor) -> torch.Tensor:
        if self.top_k is None:
            return weights
        return keep_largest(weights, self.top_k, normalise_weights)


def main_direction(delta: LowRank) -> torch.Tensor:
    """The top right singular vector `[in]` of B A, without the dense matrix; 0 if B A = 0."""
    import torch

    change = torch.linalg.qr(delta.B.float()).R @ delta.A.float()
    return torch.linalg.svd(change, full_matrices=False).Vh[0] * change.any()
