"""MM-LoRA: audio and text have a LoRA each (Arcana, Sun et al. 2024, arXiv:2410.13733).

    y_t = W x_t + s_m B_m A_m x_t,   m = audio where position t is audio, else text (the experts' names)

There the two kinds are images and text, with ranks 64 and 192 and scale 2 for both. Which position is which comes with
the batch and is never guessed from offsets; what a model writes is text. Whisper has audio and text in different
layers, so nothing is marked there and all counts as text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from loratory.fields import renamed_keys
from loratory.mixers.untrained import ALPHA, RANK, UntrainedExperts, max_rank_deltas, untrained_expert

if TYPE_CHECKING:
    import torch

    from loratory.adapters.deltas import Adapter
    from loratory.mixers.contract import GateInput, GateShape, Reads


RENAMED = {
    f"{old}_{size}": f"`{new}_{size}`"
    for old, new in {"heard": "audio", "read": "text"}.items()
    for size in ("rank", "alpha")
}


class Mixer(UntrainedExperts):
    """λ = one-hot at the expert of the position's kind; both experts start fresh."""

    model_config = renamed_keys(**RENAMED)

    families: ClassVar[tuple[str, ...]] = ("causal",)  # Whisper has no layer that reads both
    reads: ClassVar[Reads] = "nothing"

    audio_rank: int | None = RANK
    audio_alpha: float | None = ALPHA
    text_rank: int | None = RANK
    text_alpha: float | None = ALPHA

    def prepare_experts(self, given: dict[str, Adapter], seed: int) -> dict[str, Adapter]:
        like = max_rank_deltas(given)
        return {
            "audio": untrained_expert("audio", like, seed, self.audio_rank, self.audio_alpha),
            "text": untrained_expert("text", like, seed, self.text_rank, self.text_alpha),
        }

    def routing_weights(self, gate: Any, seen: GateInput, sizes: GateShape) -> torch.Tensor:
        import torch

        is_audio = torch.zeros(1, 1, dtype=torch.bool) if seen.is_audio is None else seen.is_audio
        return torch.stack([is_audio, ~is_audio], -1).float().unsqueeze(-2)
