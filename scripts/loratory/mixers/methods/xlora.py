"""X-LoRA: a gate on the base's last hidden state weighs the experts of every token and layer.

Buehler & Buehler 2024, arXiv:2402.07148, APL Machine Learning 2, 026119.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from loratory.mixers import contract
from loratory.mixers.routing import keep_largest, normalise_weights

if TYPE_CHECKING:
    import torch

    from loratory.mixers.contract import GateInput, GateShape


class Mixer(contract.Mixer):
    """Λ = scale · top_k(softmax(gate(h) / temperature)) over experts; h comes from a first pass without experts."""

    depth: int = Field(1, ge=1, description="linear layers of the gate")
    width: int = Field(256, ge=1, description="hidden width of a gate deeper than 1")
    dropout: float = Field(0.2, ge=0, lt=1, description="dropout between the gate's layers")
    temperature: float = Field(1.0, gt=0, description="softmax temperature")
    top_k: int | None = Field(None, ge=1, description="experts of a token and layer that are kept; none keeps all")
    renormalise: bool = Field(False, description="let the kept weights sum to 1; false is as published")
    scale: float = Field(1.0, gt=0, description="multiplies all weights (PEFT: global_scaling_weight)")
    layerwise: bool = Field(True, description="own weights for each adapted layer, or one set for all")
    per: Literal["token", "sequence"] = Field("token", description="what gets weights of its own")
    train_experts: bool = Field(False, description="let the experts move with the gate; false is as published")
    domain_loss: float = Field(0.0, ge=0, description="weight of a routing loss; 0 is as published")

    @property
    def per_sequence(self) -> bool:
        return self.per == "sequence"

    @property
    def trains_experts(self) -> bool:
        return self.train_experts

    @property
    def learns_labels(self) -> bool:
        return self.domain_loss > 0

    @property
    def replayable(self) -> bool:
        return not self.domain_loss

    def build_gate(self, sizes: GateShape) -> torch.nn.Module:
        from torch import nn

        out = sizes.experts * (len(sizes.modules) if self.layerwise else 1)
        widths = [sizes.hidden] + [self.width] * (self.depth - 1)
        layers = []
        for inner, outer in pairwise(widths):
            layers += [nn.Linear(inner, outer), nn.ReLU(), nn.Dropout(self.dropout)]
        return nn.Sequential(*layers, nn.Linear(widths[-1], out))

    def routing_weights(self, gate: Any, seen: GateInput, sizes: GateShape) -> torch.Tensor:
        assert seen.hidden is not None  # as the mixer reads `hidden`
        logits = gate(seen.hidden.float()).unflatten(-1, (-1, sizes.experts))  # module-major, expert-minor
        return (logits / self.temperature).softmax(-1)

    def select_weights(self, weights: torch.Tensor) -> torch.Tensor:
        """The `top_k` largest of each token and layer, 0 for the others; more than there are experts keeps all."""
        if self.top_k is None:
            return self.scale * weights
        return self.scale * keep_largest(weights, self.top_k, normalise_weights if self.renormalise else None)

    def routing_penalty(self, weights: torch.Tensor, domain: int) -> torch.Tensor:
        return -self.domain_loss * weights[..., domain].clamp_min(1e-9).log().mean()
