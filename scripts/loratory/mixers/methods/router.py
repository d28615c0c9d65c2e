"""A classifier of domains, and the expert of the domain that it names: routing that is learnt as a task of its own.

It learns from the domains' labels alone; the language model's loss says nothing to it. A control for gates that learn
from that loss, and the fair counterpart of `oracle` where the domain is not known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from loratory.mixers import contract
from loratory.mixers.routing import cross_entropy

if TYPE_CHECKING:
    import torch

    from loratory.mixers.contract import GateInput, GateShape, Reads


class Mixer(contract.Mixer):
    """λ = one-hot at argmax softmax(W h̄ + b); h̄ is the mean over the prompt of the base's last hidden states."""

    reads: ClassVar[Reads] = "hidden"
    learns_labels: ClassVar[bool] = True

    @property
    def per_sequence(self) -> bool:
        return True

    def build_gate(self, sizes: GateShape) -> torch.nn.Module:
        from torch import nn

        return nn.Linear(sizes.hidden, sizes.experts)

    def routing_weights(self, gate: Any, seen: GateInput, sizes: GateShape) -> torch.Tensor:
        assert seen.hidden is not None  # as the mixer reads `hidden`
        return gate(seen.hidden.float()).softmax(-1).unsqueeze(-2)

    def select_weights(self, weights: torch.Tensor) -> torch.Tensor:
        from torch.nn.functional import one_hot

        return one_hot(weights.argmax(-1), weights.shape[-1]).to(weights.dtype)

    def routing_penalty(self, weights: torch.Tensor, domain: int) -> torch.Tensor:
        return cross_entropy(weights, domain)
