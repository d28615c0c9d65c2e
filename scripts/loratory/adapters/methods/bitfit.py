"""BitFit: the biases alone are trained (Ben Zaken et al. 2022, arXiv:2106.10199, Bias-terms Fine-tuning).

    y = W x + b,  b ← b − η · AdamW(∂L/∂b)   for every bias of the base: of linear layers, convolutions and norms

A base whose layers have none (Llama's class) has nothing that it could train, and is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from loratory.adapters import contract
from loratory.errors import InputError

if TYPE_CHECKING:
    import torch


class Method(contract.BaseWeightsMethod):
    """b ← b − η · AdamW(∂L/∂b) for every bias."""

    def trained_weights(self, model: torch.nn.Module) -> list[str]:
        found = [name for name, _ in model.named_parameters() if name.rpartition(".")[2] == "bias"]
        if not found:
            what, expected = "the base has no biases to train", "a base with biases, such as Whisper or BERT"
            raise InputError(f"{type(model).__name__}: bitfit", what, expected=expected, fix="take another method")
        return found
