"""One plain LoRA trained on the data of all domains at once: what any mixture must beat. A control.

With `rank` the sum of the experts' ranks it has as many parameters as they have together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from loratory.mixers.untrained import ALPHA, RANK, UntrainedExperts, max_rank_deltas, untrained_expert

if TYPE_CHECKING:
    import torch

    from loratory.adapters.deltas import Adapter
    from loratory.mixers.contract import GateInput, GateShape, Reads


class Mixer(UntrainedExperts):
    """A single fresh expert (LoRA, arXiv:2106.09685) of weight 1."""

    reads: ClassVar[Reads] = "nothing"
    fewest_experts: ClassVar[int] = 1  # of one domain: a plain LoRA that learns from what a mixture learns from

    rank: int | None = RANK
    alpha: float | None = ALPHA

    def prepare_experts(self, given: dict[str, Adapter], seed: int) -> dict[str, Adapter]:
        return {"pooled": untrained_expert("pooled", max_rank_deltas(given), seed, self.rank, self.alpha)}

    def routing_weights(self, gate: Any, seen: GateInput, sizes: GateShape) -> torch.Tensor:
        import torch

        return torch.ones(1, 1, 1, sizes.experts)
