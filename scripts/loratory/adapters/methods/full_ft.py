"""Full fine-tuning: every parameter of the base is trained. The upper reference arm of a comparison, no adapter.

    W ← W − η · AdamW(∂L/∂W)   for all weights, biases, norms and embeddings

A matrix that serves as input and output embedding (GPT-2, Whisper) is one parameter and is trained as one. "Every"
includes Whisper's sinusoidal encoder positions, which its authors keep fixed (project interpretation).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from loratory.adapters import contract

if TYPE_CHECKING:
    import torch


class Method(contract.BaseWeightsMethod):
    """W ← W − η · AdamW(∂L/∂W) for every parameter."""

    def trained_weights(self, model: torch.nn.Module) -> list[str]:
        return [name for name, _ in model.named_parameters()]
