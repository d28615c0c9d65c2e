"""DARE: drop random weights of each change, make the others larger in return, then merge.

Yu et al. 2024, arXiv:2311.03099: δ̃ = (m ⊙ δ) / (1 − p) with m ~ Bernoulli(1 − p), here with density = 1 − p, so that
each change keeps its expectation. Dropping and merging are PEFT's, on whole changes ΔW_i: its `dare_linear_svd` and
`dare_ties_svd` (see `ties` for why not on A and B apart). What is dropped depends on the seed and the module alone.
The paper drops 0.9 and more from changes of large models; the default density is project interpretation.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from pydantic import Field, FiniteFloat

from loratory.mixers.merging import Merger, expert_shares, merge_experts

if TYPE_CHECKING:
    import torch

    from loratory.adapters.deltas import Adapter, LowRank


class Mixer(Merger):
    """ΔW = Σ_i w_i drop(ΔW_i), or the mean over those with the elected sign as in TIES."""

    shares: dict[str, FiniteFloat] = Field(
        {}, description="{domain: weight of its expert}; if empty 1/n each for linear, 1 each for ties"
    )
    density: float = Field(0.5, gt=0, le=1, description="weights of each change that are kept, as a share")
    combine: Literal["linear", "ties"] = Field("linear", description="how what is left is merged")
    elect: Literal["total", "frequency"] = Field("total", description="how ties finds the sign, as in mixer ties")
    rank: int | None = Field(None, ge=1, description="of the merger, cut by SVD; the sum of the ranks if none")

    def prepare_experts(self, given: dict[str, Adapter], seed: int) -> dict[str, Adapter]:
        import torch

        from loratory.adapters.deltas import LowRank

        shares = expert_shares(self.shares, given, 1 / len(given) if self.combine == "linear" else 1.0)

        def merge_module(module: str, found: dict[str, LowRank]) -> LowRank:
            changes, weights = [delta.to_dense() for delta in found.values()], torch.tensor([shares[n] for n in found])
            with seed_torch(seed, module):
                total = self.drop_and_merge(changes, weights)
            return LowRank.from_matrix(total, self.rank or sum(delta.rank for delta in found.values()))

        return merge_experts(given, merge_module)

    def drop_and_merge(self, changes: list[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
        from peft.utils.merge_utils import dare_linear, dare_ties

        if self.combine == "linear":
            return dare_linear(changes, weights, self.density)
        return dare_ties(changes, weights, self.density, self.elect)


@contextmanager
def seed_torch(seed: int, module: str) -> Iterator[None]:
    """Within, torch's own random numbers on the CPU are those of (seed, module): PEFT takes no generator."""
    import torch

    from loratory.adapters.core import generator_for

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(generator_for(seed, f"dare.{module}").initial_seed())
        yield
