"""The expert of the domain that the input is from: what a perfect router would choose. A control, not a system."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from loratory.mixers import contract

if TYPE_CHECKING:
    import torch

    from loratory.mixers.contract import GateInput, GateShape, Reads


class Mixer(contract.Mixer):
    """λ = one-hot at the domain's own expert."""

    trained: ClassVar[bool] = False
    reads: ClassVar[Reads] = "nothing"
    needs_domain: ClassVar[bool] = True

    def routing_weights(self, gate: Any, seen: GateInput, sizes: GateShape) -> torch.Tensor:
        import torch

        return torch.nn.functional.one_hot(torch.tensor([[[seen.domain]]]), sizes.experts).float()
