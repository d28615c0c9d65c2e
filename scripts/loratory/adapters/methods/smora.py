"""SMoRA: one LoRA whose ranks are experts, a few of them active for each token (arXiv:2501.15103).

    u = sigmoid(R x) + b,   I = the k largest of u,   g_j = k · u_j / Σ_I u for j in I, else 0
    y = W x + alpha / k · B (g ∘ A x)

As Σ g = k, an active rank carries alpha / k on average. Ranks may be gated in groups of `rank_partition` neighbours
that share a row of R and a b (project interpretation of the released code's repetition).

The balance is kept without a loss: after each step, b_j += bias_step · sign(mean c − c_j), where c_j counts the tokens
that chose j. As in the released code the biased score both selects and weighs (DeepSeek's trick only selects). Two
deviations: b moves once a step, and tokens that the loss does not depend on, such as padding, are not counted. The
code's bias_step, 1e-5, does nothing in runs of thousands of steps; ours is 1e-3.
"""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import Field, model_validator

from loratory.adapters import contract

if TYPE_CHECKING:
    import torch

    from loratory.adapters.contract import Tensors
    from loratory.adapters.deltas import InputDependent
    from loratory.training.session import AdapterSession

LEAST = 1e-6  # of a chosen score: b may have pushed it below 0, and weights must not change sign


class Method(contract.Method):
    """y = W x + alpha / k · B (g(x) ∘ A x) with A `[rank, in]`, B `[out, rank]` = 0, router R `[groups, in]`."""

    fixed: ClassVar[frozenset[str]] = frozenset({"bias", "counts"})
    summed: ClassVar[frozenset[str]] = frozenset({"counts"})

    rank: int = Field(64, ge=1, description="ranks in all")
    active: int = Field(8, ge=1, description="ranks that are active for a token, k")
    rank_partition: int = Field(1, ge=1, description="neighbouring ranks that are switched together")
    alpha: float = Field(16.0, gt=0, description="scale numerator; the update is multiplied by alpha / active")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the adapter's and the router's input in training")
    bias_step: float = Field(1e-3, ge=0, description="how far a step moves the balancing bias of a rank")

    @model_validator(mode="after")
    def check_options(self) -> Self:
        if self.active > self.rank:
            raise ValueError(f"active is {self.active}, expected at most rank ({self.rank})")
        for name in ("rank", "active"):
            if getattr(self, name) % self.rank_partition:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a multiple of {self.rank_partition}")
        return self

    def initial_tensors(self, weight: torch.Tensor, generator: torch.Generator) -> Tensors:
        import torch

        out, inner = weight.shape
        groups = self.rank // self.rank_partition
        a, router = torch.empty(self.rank, inner), torch.empty(groups, inner)
        for tensor in (a, router):
            tensor.uniform_(-1 / sqrt(inner), 1 / sqrt(inner), generator=generator)
        state = {"bias": torch.zeros(groups), "counts": torch.zeros(groups)}
        return {"A": a, "B": torch.zeros(out, self.rank), "R": router} | state

    def forward(self, x: torch.Tensor, tensors: Tensors, training: bool) -> torch.Tensor:
        from torch.nn.functional import dropout, linear

        x = dropout(x, self.dropout, training)
        gates = self.group_gates(x, tensors)
        every = gates.repeat_interleave(self.rank_partition, -1)
        added = linear(linear(x, tensors["A"]) * every * (self.alpha / self.active), tensors["B"])
        if training and added.requires_grad:
            chosen = gates.detach() > 0

            def count_tokens(gradient: torch.Tensor) -> None:
                tensors["counts"].add_((chosen & gradient.any(-1, keepdim=True)).flatten(0, -2).sum(0))

            added.register_hook(count_tokens)  # in the backward pass it is known which tokens matter
        return added

    def group_gates(self, x: torch.Tensor, tensors: Tensors) -> torch.Tensor:
        """g `[..., groups]`, 0 for all but the chosen groups."""
        from torch.nn.functional import linear

        scores = linear(x, tensors["R"]).sigmoid() + tensors["bias"]
        best, places = scores.topk(self.active // self.rank_partition, -1)
        best = best.clamp(min=LEAST)
        return scores.new_zeros(scores.shape).scatter(-1, places, best / best.mean(-1, keepdim=True))

    def weight_delta(self, tensors: Tensors, weight: torch.Tensor) -> InputDependent:
        from loratory.adapters.deltas import InputDependent

        return InputDependent("smora", self, {key: tensors[key] for key in ("A", "B", "R", "bias")})

    def after_step(self, session: AdapterSession, step: int) -> None:
        for layer in session.layers.values():
            counts = layer.tensors["counts"]
            layer.tensors["bias"].add_(self.bias_step * (counts.mean() - counts).sign())
            counts.zero_()
