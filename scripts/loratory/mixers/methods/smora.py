"""SMoRA's router over trained experts: their ranks, stacked into one LoRA, are what is chosen (arXiv:2501.15103).

    u = sigmoid(R x),   I = the k largest of u,   g_j = k · u_j / Σ_I u for j in I, else 0
    y = W x + Σ_i s_i B_i (g_i ∘ A_i x)

Σ g = k, so the mean gate of an active rank is 1 and experts keep their own scales s_i; with every rank active and all
u equal it is the sum of the experts. In `adapters.methods.smora` A and B are learnt with R, the scale is alpha / k,
ranks may be gated in groups, and a bias on u balances their load. Here R alone is learnt, and ranks are gated one by
one. Project interpretation: no balancing bias, as trained experts need no equal load.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from loratory.mixers import contract
from loratory.mixers.routing import keep_largest

if TYPE_CHECKING:
    import torch

    from loratory.mixers.contract import GateInput, GateShape, Reads


class Mixer(contract.Mixer):
    """A layer's router R `[Σ ranks, in]` switches on the `active` ranks that suit a token best, of any expert."""

    reads: ClassVar[Reads] = "input"
    by_rank: ClassVar[bool] = True
    replayable: ClassVar[bool] = True

    active: int = Field(8, ge=1, description="ranks that are active for a token and layer, k; all if there are fewer")

    def build_gate(self, sizes: GateShape) -> torch.nn.Module:
        from torch import nn

        pairs = zip(sizes.widths, sizes.ranks, strict=True)
        return nn.ModuleList(nn.Linear(width, rank, bias=False) for width, rank in pairs)

    def routing_weights(self, gate: Any, seen: GateInput, sizes: GateShape) -> torch.Tensor:
        assert seen.input is not None  # as the mixer reads `input`
        return gate[seen.layer](seen.input.float()).sigmoid()

    def select_weights(self, weights: torch.Tensor) -> torch.Tensor:
        return keep_largest(weights, self.active, lambda best: best / best.mean(-1, keepdim=True))
