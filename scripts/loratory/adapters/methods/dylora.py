"""DyLoRA: one LoRA that can be cut to any lower rank (Valipour et al. 2022, arXiv:2210.07558).

y = W x + (alpha / b) · B[:, :b] A[:b] x, where every optimizer step draws one b ~ U{1 … rank} for all layers, so that
the first rows learn to matter most. LoRA's start: A ~ U(±1/√in), B = 0.

With `frozen` a step trains the b-th row and column alone, so that each learns in one step of `rank`. The authors'
released training script always does so; here it is off, as the first b learn more from as many steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import Field, model_validator

from loratory.adapters.methods import lora

if TYPE_CHECKING:
    import torch

    from loratory.adapters.contract import Parameters, Tensors
    from loratory.adapters.core import AdaptedLinear
    from loratory.adapters.deltas import LowRank
    from loratory.training.session import AdapterSession


class Method(lora.Method):
    """LoRA with an active rank b: drawn in training, `export_rank` in evaluation and in what is stored."""

    fixed: ClassVar[frozenset[str]] = frozenset({"active"})

    frozen: bool = Field(
        False,
        description="a step trains the b-th row of A and column of B alone, not the first b, as the authors' released "
        "training does",
    )
    export_rank: int | None = Field(None, ge=1, description="rank that is evaluated and stored; none means `rank`")

    @model_validator(mode="after")
    def check_export_rank(self) -> Self:
        if self.deployed_rank > self.rank:
            raise ValueError(f"export_rank is {self.export_rank}, expected at most rank ({self.rank})")
        return self

    @property
    def deployed_rank(self) -> int:
        return self.export_rank or self.rank

    def initial_tensors(self, weight: torch.Tensor, generator: torch.Generator) -> Tensors:
        import torch

        return super().initial_tensors(weight, generator) | {"active": torch.tensor(self.rank)}

    def forward(self, x: torch.Tensor, tensors: Tensors, training: bool) -> torch.Tensor:
        import torch
        from torch.nn.functional import dropout, linear

        a, b, active = tensors["A"], tensors["B"], tensors["active"] if training else self.deployed_rank
        if self.frozen and training:
            learns = trained_mask(tensors)
            a, b = torch.where(learns[:, None], a, a.detach()), torch.where(learns, b, b.detach())
        # Masked and not sliced: a slice would make the device wait until the rank is known on the CPU.
        scale = (torch.arange(self.rank, device=x.device) < active) * (self.alpha / active)
        return linear(linear(dropout(x, self.dropout, training), a) * scale, b)

    def weight_delta(self, tensors: Tensors, weight: torch.Tensor) -> LowRank:
        from loratory.adapters.deltas import LowRank

        rank = self.deployed_rank
        return LowRank(tensors["A"][:rank], tensors["B"][:, :rank], self.alpha / rank)

    @property
    def lower_ranks(self) -> tuple[int, ...]:
        """Powers of two below the stored rank."""
        return tuple(2**n for n in range(self.deployed_rank.bit_length()) if 2**n < self.deployed_rank)

    def cut_to_rank(self, delta: LowRank, rank: int) -> LowRank:
        """Its first rows and columns, with the scale that they were trained with: alpha over how many they are."""
        from loratory.adapters.deltas import LowRank

        return LowRank(delta.A[:rank], delta.B[:, :rank], delta.scale * delta.rank / rank)

    def before_step(self, session: AdapterSession, step: int) -> None:
        import numpy as np

        rank = int(np.random.default_rng([session.seed, step]).integers(1, self.rank, endpoint=True))
        for layer in session.layers.values():
            layer.tensors["active"].fill_(rank)

    def create_optimizer(self, session: AdapterSession, parameters: Parameters) -> torch.optim.Optimizer:
        """AdamW; its momentum and decay move rows without a gradient too, so frozen ones are put back."""
        optimizer = super().create_optimizer(session, parameters)
        before: dict[str, list[torch.Tensor]] = {}
        if self.frozen:
            optimizer.register_step_pre_hook(lambda *_: before.update(factor_copies(session.layers)))
            optimizer.register_step_post_hook(lambda *_: restore_factors(session.layers, before))
        return optimizer


def trained_mask(tensors: Tensors) -> torch.Tensor:
    """Which of the rank's components a step with `frozen` trains `[rank]`."""
    import torch

    rank = tensors["A"].shape[0]
    return torch.arange(rank, device=tensors["A"].device) == tensors["active"] - 1


def factor_copies(layers: dict[str, AdaptedLinear]) -> dict[str, list[torch.Tensor]]:
    return {name: [layer.adapter[key].detach().clone() for key in "AB"] for name, layer in layers.items()}


def restore_factors(layers: dict[str, AdaptedLinear], before: dict[str, list[torch.Tensor]]) -> None:
    """Undoes the optimizer's step on all rows of A and columns of B but those that this step trains."""
    import torch

    with torch.no_grad():
        for name, layer in layers.items():
            (a, b), learns = before[name], trained_mask(layer.tensors)
            layer.adapter["A"].copy_(torch.where(learns[:, None], layer.adapter["A"], a))
            layer.adapter["B"].copy_(torch.where(learns, layer.adapter["B"], b))
