"""Adam's step (Kingma and Ba 2015, arXiv:1412.6980) for methods that change the gradient or the step.

m ← β₁ m + (1 − β₁) g        v ← β₂ v + (1 − β₂) g²        step: √(1 − β₂ᵗ) / (1 − β₁ᵗ) · m / (√v + ε)
"""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

BETAS, EPS = (0.9, 0.999), 1e-6


def adam_direction(gradient: torch.Tensor, state: dict[str, Any]) -> torch.Tensor:
    """The step from a gradient, which the moments in `state` (`step`, `mean`, `square`) take up."""
    import torch

    if "step" not in state:
        state.update(step=torch.tensor(0), mean=torch.zeros_like(gradient), square=torch.zeros_like(gradient))
    state["step"] = state["step"] + 1
    mean, square, (slow, slower), done = state["mean"], state["square"], BETAS, int(state["step"])
    mean.lerp_(gradient, 1 - slow)
    square.mul_(slower).addcmul_(gradient, gradient, value=1 - slower)
    return sqrt(1 - slower**done) / (1 - slow**done) * mean / (square.sqrt() + EPS)
