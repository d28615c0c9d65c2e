"""LLaVA-MoLE: in each block's MLP a router sends every token to one of K LoRA experts; attention has a plain LoRA
(Chen et al. 2024, arXiv:2401.16160).

    p = softmax(R x),   j = argmax p,   y = W x + (p_j or 1) · s B_j A_j x

All experts start fresh. Unconfirmed by the paper, so project interpretations: one router a block, which all linear
layers of its MLP follow and which reads the input of the first; and `weight_by_prob`, without which the language
model's loss has no gradient for routers. The balance loss is that of Switch (arXiv:2101.03961), K Σ_j c_j m_j with c_j
the share of tokens sent to j and m_j the mean of p_j: 1 if even, K if collapsed. The paper's sums over tokens would
grow with the square of their number. As there it is of a batch of all domains, so each may have an expert to itself.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from loratory.errors import InputError
from loratory.mixers.untrained import ALPHA, RANK, UntrainedExperts, max_rank_deltas, untrained_expert

if TYPE_CHECKING:
    import torch

    from loratory.adapters.deltas import Adapter
    from loratory.mixers.contract import GateInput, GateShape, Reads


BLOCK = re.compile(r"(.*?\.\d+)\.")
ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
PLAIN = "plain"  # the first of the experts, if any layer is no MLP's


class Mixer(UntrainedExperts):
    """Weights of (plain, expert 1, …, expert K): (1, 0, …) on layers outside MLPs, (0, p) on an MLP's."""

    reads: ClassVar[Reads] = "input"

    mlp_experts: int = Field(3, ge=1, description="experts of each block's MLP, K")
    rank: int | None = RANK
    alpha: float | None = ALPHA
    weight_by_prob: bool = Field(True, description="weigh the chosen expert by its probability, not by 1")
    balance: float = Field(0.01, ge=0, description="weight of the balance loss")

    @property
    def balances(self) -> bool:
        return self.balance > 0

    def prepare_experts(self, given: dict[str, Adapter], seed: int) -> dict[str, Adapter]:
        like = max_rank_deltas(given)
        routed = {module: delta for module, delta in like.items() if mlp_block(module)}
        if not routed:
            raise InputError("llava_mole", "no expert has a layer of an MLP", fix="give experts that adapt MLPs")
        parts = {f"mlp_{i}": routed for i in range(1, self.mlp_experts + 1)}
        rest = {module: delta for module, delta in like.items() if module not in routed}
        parts = {PLAIN: rest} | parts if rest else parts
        return {name: untrained_expert(name, part, seed, self.rank, self.alpha) for name, part in parts.items()}

    def build_gate(self, sizes: GateShape) -> torch.nn.Module:
        from torch import nn

        widths: dict[str, list[int]] = {}
        for module, width in zip(sizes.modules, sizes.widths, strict=True):
            if block := mlp_block(module):
                widths.setdefault(module_key(block), []).append(width)
        first = {key: sizes.hidden if sizes.hidden in found else found[0] for key, found in widths.items()}
        return nn.ModuleDict({key: nn.Linear(w, self.mlp_experts, bias=False) for key, w in first.items()})

    def routing_weights(self, gate: Any, seen: GateInput, sizes: GateShape) -> torch.Tensor:
        from torch.nn.functional import pad

        assert seen.input is not None and seen.layer is not None  # as the mixer reads `input`
        block = mlp_block(sizes.modules[seen.layer])
        if block is None:
            return pad(seen.input.new_ones(*seen.input.shape[:-1], 1).float(), (0, self.mlp_experts))
        if block not in seen.pass_state:
            seen.pass_state[block] = gate[module_key(block)](seen.input.float()).softmax(-1)
        return pad(seen.pass_state[block], (sizes.experts - self.mlp_experts, 0))

    def select_weights(self, weights: torch.Tensor) -> torch.Tensor:
        import torch

        best, place = weights.max(-1, keepdim=True)
        return weights.new_zeros(weights.shape).scatter(
            -1, place, best if self.weight_by_prob else torch.ones_like(best)
        )

    def routing_penalty(self, weights: torch.Tensor, domain: int) -> torch.Tensor | float:
        """The balance loss of an MLP's layer; a plain 0 for any other."""
        from torch.nn.functional import one_hot

        routed = weights[..., -self.mlp_experts :].flatten(0, -2)
        if not routed.any():
            return 0.0
        sent = one_hot(routed.argmax(-1), self.mlp_experts).to(routed.dtype).mean(0)
        return self.balance * self.mlp_experts * (sent * routed.mean(0)).sum()


@cache
def mlp_block(module: str) -> str | None:
    """The block whose MLP a layer is in; None for attention and for layers outside the blocks.

    `model.layers.3.mlp.up_proj` (Llama), `transformer.h.3.mlp.c_fc` (GPT-2), `bert.encoder.layer.3.output.dense` and
    `model.decoder.layers.3.fc1` (Whisper) are each of the MLP of a block numbered 3.
    """
    found = BLOCK.match(module)
    return found[1] if found and not ATTENTION.search(module, found.end()) else None


def module_key(block: str) -> str:
    """A block's name where dots are not allowed."""
    return block.replace(".", "/")
