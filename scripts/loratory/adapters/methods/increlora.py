"""IncreLoRA: ranks grow in the layers where they matter (Zhang et al. 2023, arXiv:2308.12043).

    y = W x + alpha / (n + 1e-5) · B diag(E) A x          with n the ranks of this layer so far
    loss + γ · mean over all A and B of ‖A Aᵀ − I‖_F, ‖BᵀB − I‖_F

Every layer starts with rank 1. A layer's importance is Σ|ΔW ∘ ∂L/∂ΔW| / √(numbers in W); its score is the smoothed
importance times a smoothed deviation from it. Every `interval` steps the layers of the highest scores gain `increment`
ranks. The next ranks of a layer, its reserve, are trained in advance: they are in the forward pass with E = 1e-5,
which is fixed until they are chosen. When growth is over, reserves leave the function.

Project interpretations. All ranks a layer may ever have are made at the start, in blocks, because the optimizer is;
a block that still waits requires no gradient, so that AdamW neither moves it nor ages its moments. So the count of
trained parameters at the start is the most that could be trained, not what is. How many layers grow at a time (the
paper's top_h) follows from the budget and the allocations that are left, so that it fits any length of run; it never
overshoots. A run too short for its allocations, one block a layer each, ends below the budget. As in the released
code, growth multiplies a layer's old part by (n + 1e-5) / (n' + 1e-5), which is a jump. The restarted
learning-rate warm-up of new ranks, which the paper used on three small tasks, is left out.
"""

from __future__ import annotations

from math import ceil, sqrt
from typing import TYPE_CHECKING, ClassVar, Self, cast

from pydantic import Field, model_validator

from loratory.adapters import contract
from loratory.adapters.methods.adalora import SPREAD, allocation_window, orthogonality_error

if TYPE_CHECKING:
    import torch

    from loratory.adapters.contract import Parameters, Tensors
    from loratory.adapters.core import AdaptedLinear
    from loratory.adapters.deltas import LowRank
    from loratory.training.session import AdapterSession

RESERVE = 1e-5  # value E of ranks that are trained in advance: they learn, yet change next to nothing


class Method(contract.Method):
    """y = W x + s · B diag(E) A x; block k is A{k} `[ranks, in]`, E{k}, B{k} `[out, ranks]`, block 0 of 1 rank."""

    learns_ranks: ClassVar[bool] = True
    fixed: ClassVar[frozenset[str]] = frozenset({"grown", "reserve", "importance", "sensitivity", "uncertainty"})
    summed: ClassVar[frozenset[str]] = frozenset({"importance"})

    target_rank: int = Field(8, ge=1, description="mean rank of the layers in the end, rounded down to whole blocks")
    increment: int = Field(4, ge=1, description="ranks that a layer gains at a time; half the target is usual")
    growths: int = Field(4, ge=1, description="how many times one layer may grow")
    alpha: float = Field(16.0, gt=0, description="scale numerator; the update is multiplied by alpha / current rank")
    advance: bool = Field(True, description="train the next ranks of every layer in advance")
    warm: float = Field(0.1, ge=0, lt=1, description="share of the steps before ranks may grow")
    final: float = Field(0.3, ge=0, lt=1, description="share of the steps, at the end, in which ranks are settled")
    interval: int = Field(10, ge=1, description="steps between two allocations")
    beta1: float = Field(0.85, gt=0, lt=1, description="smoothing of the importance over steps")
    beta2: float = Field(0.85, gt=0, lt=1, description="smoothing of the uncertainty over steps")
    orthogonality: float = Field(0.1, ge=0, description="weight of the orthogonality penalty")

    @model_validator(mode="after")
    def check_options(self) -> Self:
        if self.target_rank > 1 + self.increment * self.growths:
            most = f"1 + increment · growths ({1 + self.increment * self.growths})"
            raise ValueError(f"target_rank is {self.target_rank}, expected at most {most}")
        if self.warm + self.final >= 1:
            raise ValueError(f"warm + final is {self.warm + self.final:g}, expected less than 1")
        return self

    def initial_tensors(self, weight: torch.Tensor, generator: torch.Generator) -> Tensors:
        import torch

        out, inner = weight.shape
        tensors = {}
        for block in range(self.growths + 1):
            size, value = (self.increment, RESERVE * self.advance) if block else (1, 0.0)
            tensors[f"A{block}"] = SPREAD * torch.randn(size, inner, generator=generator)
            tensors[f"E{block}"] = torch.full((size,), value)
            tensors[f"B{block}"] = SPREAD * torch.randn(out, size, generator=generator)
        counts = {"grown": torch.tensor(0), "reserve": torch.tensor(int(self.advance))}
        return tensors | counts | {key: torch.zeros(()) for key in ("importance", "sensitivity", "uncertainty")}

    def forward(self, x: torch.Tensor, tensors: Tensors, training: bool) -> torch.Tensor:
        from torch.nn.functional import linear

        a, values, b = self.scaled_factors(tensors)
        return linear(linear(x, a) * values, b)

    def scaled_factors(self, tensors: Tensors) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """A, the scaled values of E and B of all blocks; the values of waiting ranks are 0."""
        a, e, b = self.joined_blocks(tensors)
        return a, e * self.live_mask(tensors) * (self.alpha / (1 + self.increment * tensors["grown"] + 1e-5)), b

    def joined_blocks(self, tensors: Tensors) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        from torch import cat

        blocks = range(self.growths + 1)
        ways = (("A", 0), ("E", 0), ("B", 1))
        a, e, b = (cat([tensors[f"{key}{block}"] for block in blocks], dim) for key, dim in ways)
        return a, e, b

    def live_mask(self, tensors: Tensors) -> torch.Tensor:
        """1 for ranks that are active or in reserve, 0 for those that wait, in one row for all blocks."""
        from torch import arange

        ranks = arange(1 + self.increment * self.growths, device=tensors["grown"].device)
        return (ranks < 1 + self.increment * (tensors["grown"] + tensors["reserve"])).float()

    def weight_delta(self, tensors: Tensors, weight: torch.Tensor) -> LowRank:
        from loratory.adapters.deltas import LowRank

        rank = 1 + self.increment * int(tensors["grown"])
        a, e, b = self.joined_blocks(tensors)
        return LowRank(a[:rank] * e[:rank, None], b[:, :rank], self.alpha / (rank + 1e-5))

    def create_optimizer(self, session: AdapterSession, parameters: Parameters) -> torch.optim.Optimizer:
        return session.adamw_without_decay(lambda name: ".adapter.E" in name, parameters)

    def step_penalty(self, session: AdapterSession) -> torch.Tensor | None:
        if not self.orthogonality:
            return None
        factors: list[torch.Tensor] = []
        for layer in session.layers.values():
            (a, _, b), live = self.joined_blocks(layer.tensors), self.live_mask(layer.tensors)
            factors += [orthogonality_error(a, live), orthogonality_error(b.T, live)]
        return self.orthogonality * cast("torch.Tensor", sum(factors)) / len(factors)

    # Scores.

    def layer_output(self, layer: AdaptedLinear, x: torch.Tensor) -> torch.Tensor:
        """∂L/∂ΔW is (gradient of the output)ᵀ x: it is made in the backward pass, one layer at a time, and not kept.

        A step of several micro-batches sums their importances, an upper bound (project interpretation).
        """
        y = super().layer_output(layer, x)
        if layer.training and y.requires_grad and getattr(layer, "scored", False):

            def add_importance(gradient: torch.Tensor) -> None:
                layer.tensors["importance"].add_(self.delta_importance(layer.tensors, gradient, x))

            y.register_hook(add_importance)
        return y

    def delta_importance(self, tensors: Tensors, gradient: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        import torch

        with torch.no_grad():
            a, values, b = self.scaled_factors(tensors)
            of_delta = gradient.flatten(0, -2).float().T @ x.flatten(0, -2).float()
            return ((b * values @ a) * of_delta).abs().sum() / sqrt(of_delta.numel())

    # Growth.

    def before_step(self, session: AdapterSession, step: int) -> None:
        """Set at every step, not at growth alone, so that a resumed training is right too."""
        growing = self.may_grow(session, step)
        for layer, grown in zip(session.layers.values(), growth_counts(session)):
            # Read in each forward pass; a tensor would make the host wait for the device.
            layer.scored = growing  # type: ignore[assignment]  # torch's stub knows tensors and modules alone
            for block in range(self.growths + 1):
                active, reserve = block <= grown, self.advance and growing and block == grown + 1
                layer.adapter[f"E{block}"].requires_grad_(active)
                layer.adapter[f"A{block}"].requires_grad_(active or reserve)
                layer.adapter[f"B{block}"].requires_grad_(active or reserve)

    def after_step(self, session: AdapterSession, step: int) -> None:
        import torch

        layers = [layer.tensors for layer in session.layers.values()]
        first, last = allocation_window(session.recipe.steps, self.warm, self.final)
        with torch.no_grad():
            if self.may_grow(session, step):
                for tensors in layers:
                    self.update_sensitivity(tensors)
                if step > first and step % self.interval == 0:
                    left = (last - step) // self.interval + 1
                    self.grow_layers(
                        layers, ceil((self.growth_budget(len(layers)) - sum(growth_counts(session))) / left)
                    )
            if not self.may_grow(session, step + 1):
                for tensors in layers:
                    tensors["reserve"].zero_()

    def may_grow(self, session: AdapterSession, step: int) -> bool:
        """Whether a step may still lead to growth."""
        _, last = allocation_window(session.recipe.steps, self.warm, self.final)
        return step <= last and sum(growth_counts(session)) < self.growth_budget(len(session.layers))

    def growth_budget(self, layers: int) -> int:
        """How often layers may grow in all."""
        return (self.target_rank - 1) * layers // self.increment

    def update_sensitivity(self, tensors: Tensors) -> None:
        """Smooths a layer's importance and how much it varies."""
        now = tensors["importance"]
        smooth = tensors["sensitivity"].lerp_(now, 1 - self.beta1)
        tensors["uncertainty"].lerp_((now - smooth).abs(), 1 - self.beta2)
        now.zero_()

    def grow_layers(self, layers: list[Tensors], number: int) -> None:
        """Lets the layers of the highest scores grow, of those that may; ties go by order."""
        scores = [float(tensors["sensitivity"] * tensors["uncertainty"]) for tensors in layers]
        able = [place for place, tensors in enumerate(layers) if tensors["grown"] < self.growths]
        for place in sorted(able, key=lambda place: -scores[place])[:number]:
            layers[place]["grown"].add_(1)


def growth_counts(session: AdapterSession) -> list[int]:
    """How often each layer has grown."""
    from torch import stack

    return stack([layer.tensors["grown"] for layer in session.layers.values()]).tolist()
