"""Every expert with the same weight: the plainest mixture, and a control for every other."""

from __future__ import annotations

from typing import ClassVar

from loratory.mixers import contract


class Mixer(contract.Mixer):
    """λ = 1 / n."""

    trained: ClassVar[bool] = False
    reads: ClassVar[str] = "nothing"

    def routing_weights(self, gate, seen, sizes):
        import torch

        return torch.full((1, 1, 1, sizes.experts), 1 / sizes.experts)
