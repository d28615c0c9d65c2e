"""One plain LoRA trained on the data of all domains at once: what any mixture must beat. A control.

With `rank` the sum of the experts' ranks it has as many parameters as they have together.
"""

from __future__ import annotations

from typing import ClassVar

from loratory.mixers.fresh import ALPHA, RANK, Starter, fresh, widest


class Mixer(Starter):
    """A single fresh expert (LoRA, arXiv:2106.09685) of weight 1."""

    reads: ClassVar[str] = "nothing"

    rank: int | None = RANK
    alpha: float | None = ALPHA

    def experts_of(self, given, seed):
        return {"pooled": fresh("pooled", widest(given), seed, self.rank, self.alpha)}

    def weights(self, gate, seen, sizes):
        import torch

        return torch.ones(1, 1, 1, sizes.experts)
