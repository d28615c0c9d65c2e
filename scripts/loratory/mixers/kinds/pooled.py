"""One plain LoRA trained on the data of all domains at once: what any mixture must beat. A control.

With `rank` the sum of the experts' ranks it has as many parameters as they have together.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from loratory.mixers import contract


class Mixer(contract.Mixer):
    """A single fresh expert (LoRA, arXiv:2106.09685) of weight 1."""

    reads: ClassVar[str] = "nothing"
    splits: ClassVar[tuple[str, ...]] = ("train", "gate")

    rank: int | None = Field(None, ge=1, description="rank; none takes each layer's largest among the experts given")
    alpha: float | None = Field(
        None, gt=0, description="scale numerator; none takes that of the given expert of largest rank"
    )

    @property
    def trains_experts(self):
        return True

    def experts_of(self, given, seed):
        from loratory.mixers.fresh import fresh, widest

        return {"pooled": fresh("pooled", widest(given), seed, self.rank, self.alpha)}

    def weights(self, gate, seen, sizes):
        import torch

        return torch.ones(1, 1, 1, sizes.experts)
