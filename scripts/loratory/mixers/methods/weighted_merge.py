"""The weighted sum of all changes as one adapter: ΔW = Σ_i w_i ΔW_i, by laying the ranks side by side.

PEFT calls it `cat`; cut to a rank it is PEFT's `svd`. With equal shares it is `uniform`, paid for once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, FiniteFloat

from loratory.mixers.merging import Merger, expert_shares, merge_experts

if TYPE_CHECKING:
    from loratory.adapters.deltas import Adapter, LowRank


class Mixer(Merger):
    """ΔW = [w_1 s_1 B_1 … w_n s_n B_n] [A_1; …; A_n]: exact, of rank Σ r_i."""

    shares: dict[str, FiniteFloat] = Field({}, description="{domain: weight of its expert}; 1/n each if empty")
    rank: int | None = Field(None, ge=1, description="cut the sum to this rank by SVD; none is exact")

    def prepare_experts(self, given: dict[str, Adapter], seed: int) -> dict[str, Adapter]:
        shares = expert_shares(self.shares, given, 1 / len(given))

        def merge_module(module: str, found: dict[str, LowRank]) -> LowRank:
            total = concatenate_ranks(found, shares)
            return total if self.rank is None else total.truncate(self.rank)

        return merge_experts(given, merge_module)


def concatenate_ranks(found: dict[str, LowRank], shares: dict[str, float]) -> LowRank:
    import torch

    from loratory.adapters.deltas import LowRank

    a = torch.cat([delta.A.float() for delta in found.values()])
    b = torch.cat([shares[name] * delta.scale * delta.B.float() for name, delta in found.items()], 1)
    return LowRank(a, b, 1.0)
