"""IntTune (IntermediateTune): NLoRA of which only the middle matrix is trained (arXiv:2502.14482).

y = W x + s · B N A x with A = W[:r, :] and B = W[:, :r] fixed and N = W[:r, :r] at the start, so ∂L/∂N = s · Bᵀ G Aᵀ.
With `offset_base` (project interpretation) it is y = W x + s · B (N − N₀) A x, still of rank r.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from loratory.adapters.methods import nlora

if TYPE_CHECKING:
    from loratory.adapters.contract import Tensors
    from loratory.adapters.deltas import LowRank


class Method(nlora.Method):
    """y = W x + s · B N A x with A = W[:r, :] and B = W[:, :r] fixed; only N, at the start W[:r, :r], is trained;
    r = rank and s = alpha / rank."""

    fixed: ClassVar[frozenset[str]] = frozenset({"A", "B", "N0"})

    def offset_tensors(self, factors: Tensors) -> Tensors:
        return {"N0": factors["N"].clone()}

    def subtract_start(self, change: LowRank, tensors: Tensors) -> LowRank:
        return replace(change, B=change.B - tensors["B"] @ tensors["N0"])
