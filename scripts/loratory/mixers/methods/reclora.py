"""RecLoRA: a recommender's view of each user weighs meta-LoRAs (Zhu et al. 2024, arXiv:2408.03533).

    h = recommender(the user's past, item that is asked about),   α = softmax(gate(LayerNorm h) / temperature)
    paper:     y = W x + s Σ_k α_k B_k A_k x
    released:  y = W x + s (Σ_k α_k B_k)(Σ_k α_k A_k) x,   with √α in place of α: released_sqrt

`paper` is what the equations say; the released code mixes the factors, which adds the cross terms B_i A_j. Each
adapted layer has its own gate (LayerNorm, Linear, ReLU, Dropout, Linear), and α is one for all tokens of a record. The
recommender (`domains.recommender`) learns from all records of the splits first and is `frozen` then, as there;
`adaptive` lets it move with the gates. With `training.max_examples` the language model learns from a few of these
records alone: few-to-many, as the paper has it. Records of which nothing is known share a learnt view.

So gates learn from views of records that the recommender has learnt from, as in the paper, and may trust it more than
they should on others: that can cost RecLoRA and not help it, since neither reads `valid` or `test`. `pooled` learns
from the same splits; the control `din` from `train` alone, as all controls do.

α never depends on what is to be told. As released it depends on the past and on the item that is asked about, so that
gates hand on what the recommender knows of items too: a gain where all users like alike. With `view: user`
(`user_reps` in the released code, which adds the user's id) it depends on the past alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from loratory.mixers.untrained import ALPHA, RANK, UntrainedExperts, max_rank_deltas, untrained_expert

if TYPE_CHECKING:
    import torch

    from loratory.adapters.deltas import Adapter
    from loratory.domains.contract import Example
    from loratory.mixers.contract import GateInput, GateShape, Reads


RECOMMENDER, UNKNOWN, GATES = "recommender", "unknown", "gates"  # parts of the gate


class Mixer(UntrainedExperts):
    """λ = α of the record's user and item, by layer; all experts start fresh."""

    reads: ClassVar[Reads] = "context"
    fewest_experts: ClassVar[int] = 1

    meta_loras: int = Field(8, ge=1, description="experts that are mixed, K; of 1 it is a plain LoRA")
    rank: int | None = RANK
    alpha: float | None = ALPHA
    combine: Literal["paper", "released", "released_sqrt"] = Field(
        "paper", description="mix products of factors, as the equations say, or factors, as the released code does"
    )
    recommender: Literal["frozen", "adaptive"] = Field(
        "frozen", description="whether the recommender, once it has learnt, moves with the gates"
    )
    view: Literal["user_and_item", "user"] = Field(
        "user_and_item",
        description="what the gates read: the recommender's last hidden state, of the past and of the item that is"
        " asked about, or means of the past alone",
    )
    searched: int | None = Field(
        None,
        ge=1,
        description="past events that the recommender attends to, those like the item (SIM); none: all (DIN)",
    )
    temperature: float = Field(1.0, gt=0, description="softmax temperature; there 1 to 15")
    width: int = Field(60, ge=1, description="hidden width of each layer's gate")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout within each layer's gate")

    @property
    def per_sequence(self) -> bool:
        return True

    @property
    def mixes_factors(self) -> bool:
        return self.combine != "paper"

    def prepare_experts(self, given: dict[str, Adapter], seed: int) -> dict[str, Adapter]:
        like = max_rank_deltas(given)
        names = [f"meta_{i}" for i in range(1, self.meta_loras + 1)]
        return {name: untrained_expert(name, like, seed, self.rank, self.alpha) for name in names}

    def pretrain_gate(self, examples: Iterable[Example], seed: int) -> dict[str, torch.Tensor]:
        """The recommender; examples of `gate` come last, so that these say when it has learnt enough."""
        from loratory.domains.recommender import fit_recommender

        known = [(e.context, e.choices.index(e.target)) for e in examples if e.context and e.choices]
        if not known:
            return {}
        contexts, labels = zip(*known)
        learnt = fit_recommender(contexts, labels, seed, self.searched).state_dict()
        return {f"{RECOMMENDER}.{name}": tensor for name, tensor in learnt.items()}

    def build_gate(self, sizes: GateShape) -> torch.nn.Module:
        from torch import nn

        from loratory.domains.recommender import HIDDEN, WIDTH, DeepInterest

        inner = HIDDEN if self.view == "user_and_item" else 2 * WIDTH
        recommender = DeepInterest(self.searched).requires_grad_(self.recommender == "adaptive")
        gates = nn.ModuleList(self.layer_gate(inner) for _ in sizes.modules)
        return nn.ModuleDict({RECOMMENDER: recommender, UNKNOWN: nn.Embedding(1, inner), GATES: gates})

    def layer_gate(self, inner: int) -> torch.nn.Module:
        from torch import nn

        last = nn.Linear(self.width, self.meta_loras)
        return nn.Sequential(
            nn.LayerNorm(inner, elementwise_affine=False),
            nn.Linear(inner, self.width),
            nn.ReLU(),
            nn.Dropout(self.dropout),
            last,
        )

    def routing_weights(self, gate: Any, seen: GateInput, sizes: GateShape) -> torch.Tensor:
        import torch

        view = self.user_view(gate, seen.context)
        logits = torch.stack([layer(view) for layer in gate[GATES]], 1)
        return (logits / self.temperature).softmax(-1).unsqueeze(1)

    def user_view(self, gate: Any, context: torch.Tensor | None) -> torch.Tensor:
        """`[batch | 1, width]` of the recommender."""
        import torch

        recommender, unknown = gate[RECOMMENDER], gate[UNKNOWN].weight
        if context is None:
            return unknown
        read = recommender.past_vectors if self.view == "user" else recommender.user_vectors
        if self.recommender == "frozen":
            recommender.eval()  # its dropout too
            with torch.no_grad():
                view = read(context)
        else:
            view = read(context)
        return torch.where(context[:, :1, 0] > 0, view, unknown)

    def select_weights(self, weights: torch.Tensor) -> torch.Tensor:
        return weights.sqrt() if self.combine == "released_sqrt" else weights
