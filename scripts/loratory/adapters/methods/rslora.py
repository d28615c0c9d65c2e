"""rsLoRA: LoRA with a rank-stabilised scale (Kalajdzievski 2023, arXiv:2312.03732).

With alpha / rank the update and its gradients shrink as the rank grows; with alpha / √rank they keep their size.
"""

from __future__ import annotations

from math import sqrt

from loratory.adapters.methods import lora


class Method(lora.Method):
    """y = W x + s · B A x with s = alpha / √rank; all else is LoRA's."""

    @property
    def scale(self) -> float:
        return self.alpha / sqrt(self.rank)
