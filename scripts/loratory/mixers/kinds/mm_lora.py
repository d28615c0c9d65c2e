"""MM-LoRA: what is heard and what is read have a LoRA each (Arcana, Sun et al. 2024, arXiv:2410.13733).

    y_t = W x_t + s_m B_m A_m x_t,   m = heard where position t is audio, else read

There the two kinds are images and text, with ranks 64 and 192 and scale 2 for both. Which position is which comes with
the batch and is never guessed from offsets; what is written is read. Whisper hears and reads in different layers, so
nothing is marked there and all is read.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from loratory.mixers import contract


class Mixer(contract.Mixer):
    """λ = one-hot at the expert of the position's kind; both experts start fresh."""

    reads: ClassVar[str] = "nothing"
    splits: ClassVar[tuple[str, ...]] = ("train", "gate")

    heard_rank: int | None = Field(
        None, ge=1, description="rank for audio; none takes each layer's largest among those given"
    )
    heard_alpha: float | None = Field(
        None, gt=0, description="scale numerator; none takes that of the given expert of largest rank"
    )
    read_rank: int | None = Field(
        None, ge=1, description="rank for text; none takes each layer's largest among those given"
    )
    read_alpha: float | None = Field(
        None, gt=0, description="scale numerator; none takes that of the given expert of largest rank"
    )

    @property
    def trains_experts(self):
        return True

    def experts_of(self, given, seed):
        from loratory.mixers.fresh import fresh, widest

        like = widest(given)
        return {
            "heard": fresh("heard", like, seed, self.heard_rank, self.heard_alpha),
            "read": fresh("read", like, seed, self.read_rank, self.read_alpha),
        }

    def weights(self, gate, seen, sizes):
        import torch

        heard = torch.zeros(1, 1, dtype=torch.bool) if seen.is_audio is None else seen.is_audio
        return torch.stack([heard, ~heard], -1).float().unsqueeze(-2)
