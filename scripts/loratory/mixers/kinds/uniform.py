"""Every expert with the same weight: the plainest mixture, and a control for every other."""

from __future__ import annotations

from typing import ClassVar

from loratory.mixers import contract


class Mixer(contract.Mixer):
    """λ = 1 / n."""

    trained: ClassVar[bool] = False
    reads_hidden: ClassVar[bool] = False

    def weights(self, gate, hidden, sizes, domain):
        import torch

        return torch.full((1, 1, 1, sizes.experts), 1 / sizes.experts)
