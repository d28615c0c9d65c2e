"""What mixers that route share: keeping the largest weights, and the loss of naming the wrong domain.

No torch at the top: the methods are imported while the config is read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def keep_largest(
    weights: torch.Tensor, k: int, again: Callable[[torch.Tensor], torch.Tensor] | None = None
) -> torch.Tensor:
    """The `k` largest of the last axis, or all if there are fewer, and 0 for the others.

    Args:
        again: what becomes of those that are kept, `[…, k]`; they stay as they are if not given.
    """
    best, places = weights.topk(min(k, weights.shape[-1]), -1)
    best = best if again is None else again(best)
    return best.new_zeros(weights.shape).scatter(-1, places, best)


def normalise_weights(weights: torch.Tensor) -> torch.Tensor:
    """Made to sum to 1."""
    return weights / weights.sum(-1, keepdim=True)


def cross_entropy(weights: torch.Tensor, domain: int) -> torch.Tensor:
    """Mean of −log p of the domain's expert."""
    return -finite_log(weights[..., domain]).mean()


def finite_log(weights: torch.Tensor) -> torch.Tensor:
    """log p, finite where p is rounded to 0."""
    import torch

    return weights.clamp_min(torch.finfo(weights.dtype).tiny).log()
