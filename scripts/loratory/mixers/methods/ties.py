"""TIES merging: trim each change, elect a sign for each weight, average the changes that agree with it.

Yadav et al. 2023, arXiv:2306.01708. The trimming, election and mean are PEFT's, on whole changes ΔW_i and not on A and
B apart: its `ties_svd`. Changes of unequal ranks have no common A and B, and equal ones no common basis.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, FiniteFloat

from loratory.mixers.merging import Merger, expert_shares, merge_experts

if TYPE_CHECKING:
    from loratory.adapters.deltas import Adapter, LowRank


class Mixer(Merger):
    """ΔW = mean of w_i trim(ΔW_i) over the experts whose sign is the elected one, weight for weight."""

    shares: dict[str, FiniteFloat] = Field({}, description="{domain: weight of its expert}; 1 each if empty")
    density: float = Field(0.2, gt=0, le=1, description="largest weights of each change that are kept, as a share")
    elect: Literal["total", "frequency"] = Field("total", description="the sign of most magnitude, or of most experts")
    rank: int | None = Field(None, ge=1, description="of the merger, cut by SVD; the sum of the ranks if none")

    def prepare_experts(self, given: dict[str, Adapter], seed: int) -> dict[str, Adapter]:
        import torch
        from peft.utils.merge_utils import ties

        from loratory.adapters.deltas import LowRank

        shares = expert_shares(self.shares, given, 1.0)

        def merge_module(module: str, found: dict[str, LowRank]) -> LowRank:
            changes, weights = [delta.to_dense() for delta in found.values()], torch.tensor([shares[n] for n in found])
            total = ties(changes, weights, self.density, self.elect)
            return LowRank.from_matrix(total, self.rank or sum(delta.rank for delta in found.values()))

        return merge_experts(given, merge_module)
