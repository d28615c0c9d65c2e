"""Slide-LoRA: a fresh expert for each domain and one that all share, weighed sequence by sequence.

TextHarmony, Zhao et al. 2024, arXiv:2407.16364.

    y = W x + Σ_e g_e · alpha / rank · B_e A_e x

The released gate is hard: 0.5 for the domain's expert, 0.5 for the shared one. The paper speaks of a learnt one, of
which the code has none; `gating: learned` is a softmax of a linear layer on the mean of the base's prompt states
(project interpretation). The released code has no alpha / rank; here the scale is declared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from loratory.errors import InputError
from loratory.mixers.untrained import ALPHA, RANK, UntrainedExperts, max_rank_deltas, untrained_expert

if TYPE_CHECKING:
    import torch

    from loratory.adapters.deltas import Adapter
    from loratory.mixers.contract import GateInput, GateShape, Reads


SHARED = "shared"


class Mixer(UntrainedExperts):
    """g = (0.5 at the domain's expert, 0.5 at the shared one, the last), or softmax(W h̄ + b) over all."""

    gating: Literal["task_id", "learned"] = Field(
        "task_id", description="the domain is told, or a gate weighs experts"
    )
    rank: int | None = RANK
    alpha: float | None = ALPHA

    @property
    def needs_domain(self) -> bool:
        return self.gating == "task_id"

    @property
    def reads(self) -> Reads:
        return "nothing" if self.needs_domain else "hidden"

    @property
    def per_sequence(self) -> bool:
        return not self.needs_domain

    def prepare_experts(self, given: dict[str, Adapter], seed: int) -> dict[str, Adapter]:
        like = max_rank_deltas(given)
        return {name: untrained_expert(name, like, seed, self.rank, self.alpha) for name in (*given, SHARED)}

    def build_gate(self, sizes: GateShape) -> torch.nn.Module | None:
        from torch import nn

        return None if self.needs_domain else nn.Linear(sizes.hidden, sizes.experts)

    def routing_weights(self, gate: Any, seen: GateInput, sizes: GateShape) -> torch.Tensor:
        if self.needs_domain:
            return half_weights(seen.domain, sizes.experts)
        assert seen.hidden is not None  # as the mixer reads `hidden`
        return gate(seen.hidden.float()).softmax(-1).unsqueeze(-2)


def half_weights(domain: int | None, experts: int) -> torch.Tensor:
    """0.5 for the domain's own expert, 0.5 for the last, `[1, 1, 1, experts]`.

    Raises:
        InputError: the domain is none of the mixture's.
    """
    import torch

    if domain is None or not 0 <= domain < experts - 1:
        fix = "ask it about its own domains, or use `gating: learned`"
        raise InputError("slide_lora", "the domain is not one of the mixture's", domain, f"0 to {experts - 2}", fix)
    found = torch.zeros(1, 1, 1, experts)
    found[..., [domain, -1]] = 0.5
    return found
