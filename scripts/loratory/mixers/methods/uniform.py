"""Every expert with the same weight: the plainest mixture, and a control for every other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from loratory.mixers import contract

if TYPE_CHECKING:
    import torch

    from loratory.mixers.contract import GateInput, GateShape, Reads


class Mixer(contract.Mixer):
    """λ = 1 / n."""

    trained: ClassVar[bool] = False
    reads: ClassVar[Reads] = "nothing"

    def routing_weights(self, gate: Any, seen: GateInput, sizes: GateShape) -> torch.Tensor:
        import torch

        return torch.full((1, 1, 1, sizes.experts), 1 / sizes.experts)
