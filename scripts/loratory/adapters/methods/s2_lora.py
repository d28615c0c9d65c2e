"""S2-LoRA: one low-rank pair for all matrices of a shape, sparse coefficients for each (Liu et al. 2023,
arXiv:2309.11756).

y = W_m x + B diag(s_m) A x, where A `[rank, in]` and B `[out, rank]` are shared and s_m `[rank]` is the matrix's own;
an L1 penalty makes s_m sparse.

Project interpretation, all of it unconfirmed by the paper: A, B ~ N(0, 0.02²) and s = 0 at first; no other scale; one
pair for each shape of the target layers; the penalty is a proximal step after the optimizer's, for exact zeros:
s ← sign(s) · max(|s| − learning rate · λ, 0). As Adam's steps are about a learning rate long however small the
gradients, λ is the share of such a step that is taken back; a λ meant for a term of the loss (1e-4) would do nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from loratory.adapters import contract

if TYPE_CHECKING:
    import torch

    from loratory.adapters.contract import Parameters, Tensors
    from loratory.adapters.deltas import LowRank
    from loratory.training.session import AdapterSession


class Method(contract.Method):
    """y = W_m x + B diag(s_m) A x."""

    learns_ranks: ClassVar[bool] = True

    rank: int = Field(32, ge=1, description="rank of the shared pair, and coefficients of each matrix")
    sparsity: float = Field(
        0.1, ge=0, description="λ of the L1 penalty on the coefficients: each step shrinks them by learning rate · λ"
    )

    def initial_tensors(self, weight: torch.Tensor, generator: torch.Generator) -> Tensors:
        import torch

        out, inner = weight.shape
        a = torch.empty(self.rank, inner).normal_(0, 0.02, generator=generator)
        b = torch.empty(out, self.rank).normal_(0, 0.02, generator=generator)
        return {"A": a, "B": b, "s": torch.zeros(self.rank)}

    def forward(self, x: torch.Tensor, tensors: Tensors, training: bool) -> torch.Tensor:
        from torch.nn.functional import linear

        return linear(linear(x, tensors["A"]) * tensors["s"], tensors["B"])

    def weight_delta(self, tensors: Tensors, weight: torch.Tensor) -> LowRank:
        """The pair with s_m in A; components that are exactly zero are left out, but for one."""
        from loratory.adapters.deltas import LowRank

        s = tensors["s"]
        kept = s.nonzero().flatten() if s.any() else s.new_zeros(1).long()
        return LowRank(s[kept, None] * tensors["A"][kept], tensors["B"][:, kept], 1.0)

    def prepare_training(self, session: AdapterSession) -> None:
        """All matrices of a shape take the pair of the first."""
        first: dict[torch.Size, torch.nn.ParameterDict] = {}
        for layer in session.layers.values():
            pair = first.setdefault(layer.shape, layer.adapter)
            for key in ("A", "B"):
                layer.adapter[key] = pair[key]

    def create_optimizer(self, session: AdapterSession, parameters: Parameters) -> torch.optim.Optimizer:
        """AdamW without decay of the coefficients, which the penalty shrinks already."""
        return session.adamw_without_decay(lambda name: name.endswith(".adapter.s"), parameters)

    def after_step(self, session: AdapterSession, step: int) -> None:
        import torch
        from torch.nn.functional import softshrink

        shrinkage = session.recipe.learning_rate_at(step) * self.sparsity
        with torch.no_grad():
            for layer in session.layers.values():
                layer.adapter["s"].copy_(softshrink(layer.adapter["s"], shrinkage))
