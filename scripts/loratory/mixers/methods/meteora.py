"""MeteoRA: every layer weighs the experts of every token by its own input (Xu et al. 2024, arXiv:2405.13053).

    p = softmax(G x),   I = the k largest of p,   λ_i = softmax over I of log p_i / T, else 0
    loss = LM + gate_loss · mean over layers and tokens of -log p_domain

At T = 1 the kept p are renormalised, as the released code trains; at any T it is softmax(z_I / T) of its inference.
With `top_k` 1 every weight is exactly 1, so the gates learn from the second term alone. That term is routing with
labels, not balancing; the code has 50 hard-coded. The paper trains gates alone, the code its experts too:
`train_experts` chooses. Unlike there, ranks may differ.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from loratory.mixers import contract
from loratory.mixers.routing import cross_entropy, finite_log, keep_largest

if TYPE_CHECKING:
    import torch

    from loratory.mixers.contract import GateInput, GateShape, Reads


class Mixer(contract.Mixer):
    """λ of the `top_k` experts that a layer's gate G `[experts, in]` wants for a token, summing to 1."""

    reads: ClassVar[Reads] = "input"

    top_k: int = Field(2, ge=1, description="experts of a token and layer that are kept; at 1 their weight is 1")
    temperature: float = Field(1.0, gt=0, description="softmax temperature among the kept experts")
    gate_loss: float = Field(50.0, ge=0, description="weight of the gates' cross-entropy on the domain; as published")
    train_experts: bool = Field(False, description="let the experts move with the gates, as the released code does")

    @property
    def trains_experts(self) -> bool:
        return self.train_experts

    @property
    def learns_labels(self) -> bool:
        return self.gate_loss > 0

    def build_gate(self, sizes: GateShape) -> torch.nn.Module:
        from torch import nn

        return nn.ModuleList(nn.Linear(width, sizes.experts, bias=False) for width in sizes.widths)

    def routing_weights(self, gate: Any, seen: GateInput, sizes: GateShape) -> torch.Tensor:
        assert seen.input is not None  # as the mixer reads `input`
        return gate[seen.layer](seen.input.float()).softmax(-1)

    def select_weights(self, weights: torch.Tensor) -> torch.Tensor:
        return keep_largest(weights, self.top_k, lambda best: (finite_log(best) / self.temperature).softmax(-1))

    def routing_penalty(self, weights: torch.Tensor, domain: int) -> torch.Tensor:
        return self.gate_loss * cross_entropy(weights, domain)
