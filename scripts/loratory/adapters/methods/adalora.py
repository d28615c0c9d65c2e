"""AdaLoRA: triplets like an SVD's, of which the least important are zeroed (Zhang et al. 2023, arXiv:2303.10512).

    y = W x + alpha / (r + 1e-5) · B diag(E) A x          with r the rank at the start
    loss + γ · mean over all A and B of ‖A Aᵀ − I‖_F, ‖BᵀB − I‖_F

A triplet k of a layer (E_k, row k of A, column k of B) has the score s(E_k) + mean s(A_k) + mean s(B_k), where s is a
smoothed |w · ∂L/∂w| times a smoothed deviation from it. The budget of triplets falls along a cubic from the start rank
to the target rank, summed over layers; layers compete. Scores, budget and masks follow PEFT 0.21.2, as do the
defaults. Three deviations: the schedule is given in shares of the run, E has no weight decay, which would blur what
the mask decides, and a layer without gradients keeps its score.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self, cast

from pydantic import Field, model_validator

from loratory.adapters import contract

if TYPE_CHECKING:
    import torch

    from loratory.adapters.contract import Parameters, Tensors
    from loratory.adapters.deltas import LowRank
    from loratory.training.session import AdapterSession

TRIPLET = ("A", "E", "B")
SPREAD = 0.02  # standard deviation of the factors at the start


class Method(contract.Method):
    """y = W x + s · B diag(E) A x with A `[rank, in]`, B `[out, rank]` ~ N(0, 0.02²), E `[rank]` = 0."""

    learns_ranks: ClassVar[bool] = True
    fixed: ClassVar[frozenset[str]] = frozenset(
        {"kept", *(f"{kind}_{key}" for kind in ("sensitivity", "uncertainty") for key in TRIPLET)}
    )

    init_rank: int = Field(12, ge=2, description="rank of every layer at the start; 1.5 times the target is usual")
    target_rank: int = Field(8, ge=1, description="mean rank of the layers in the end")
    alpha: float = Field(16.0, gt=0, description="scale numerator; the update is multiplied by alpha / init_rank")
    warm: float = Field(0.1, ge=0, lt=1, description="share of the steps before the budget begins to fall")
    final: float = Field(0.3, ge=0, lt=1, description="share of the steps, at the end, with the target's budget")
    interval: int = Field(1, ge=1, description="steps between two allocations while the budget falls")
    beta1: float = Field(0.85, gt=0, lt=1, description="smoothing of the sensitivity over steps")
    beta2: float = Field(0.85, gt=0, lt=1, description="smoothing of the uncertainty over steps")
    orthogonality: float = Field(0.5, ge=0, description="weight of the orthogonality penalty; the authors took 0.1")

    @model_validator(mode="after")
    def check_options(self) -> Self:
        if self.target_rank >= self.init_rank:
            raise ValueError(f"target_rank is {self.target_rank}, expected less than init_rank ({self.init_rank})")
        if self.warm + self.final >= 1:
            raise ValueError(f"warm + final is {self.warm + self.final:g}, expected less than 1")
        return self

    @property
    def scale(self) -> float:
        return self.alpha / (self.init_rank + 1e-5)

    def initial_tensors(self, weight: torch.Tensor, generator: torch.Generator) -> Tensors:
        import torch

        out, inner = weight.shape
        trained = {
            "A": SPREAD * torch.randn(self.init_rank, inner, generator=generator),
            "E": torch.zeros(self.init_rank),
            "B": SPREAD * torch.randn(out, self.init_rank, generator=generator),
        }
        scores = {name: torch.zeros_like(trained[name[-1]]) for name in self.fixed - {"kept"}}
        return trained | scores | {"kept": torch.ones(self.init_rank, dtype=torch.bool)}

    def forward(self, x: torch.Tensor, tensors: Tensors, training: bool) -> torch.Tensor:
        from torch.nn.functional import linear

        return linear(linear(x, tensors["A"]) * (tensors["E"] * self.scale), tensors["B"])

    def weight_delta(self, tensors: Tensors, weight: torch.Tensor) -> LowRank:
        from loratory.adapters.deltas import LowRank

        a, e, b = (tensors[key] for key in TRIPLET)
        left = e != 0
        if not left.any():
            left[0] = True  # no adapter file has layers of rank 0; this row is zero
        return LowRank(a[left] * e[left, None], b[:, left], self.scale)

    def create_optimizer(self, session: AdapterSession, parameters: Parameters) -> torch.optim.Optimizer:
        return session.adamw_without_decay(lambda name: ".adapter.E" in name, parameters)

    def step_penalty(self, session: AdapterSession) -> torch.Tensor | None:
        if not self.orthogonality:
            return None
        factors = [f for layer in session.layers.values() for f in (layer.tensors["A"], layer.tensors["B"].T)]
        total = cast("torch.Tensor", sum(orthogonality_error(factor) for factor in factors))
        return self.orthogonality * total / len(factors)

    def after_step(self, session: AdapterSession, step: int) -> None:
        """Scores take the parameter after the step and the gradient before it, as with PEFT's order of calls."""
        import torch

        first, last = allocation_window(session.recipe.steps, self.warm, self.final)
        layers = [layer.tensors for layer in session.layers.values()]
        due = step == last or (first < step < last and step % self.interval == 0)
        with torch.no_grad():
            if step < last:
                for tensors in layers:
                    self.update_sensitivity(tensors)
            if due:
                triplets = rank_budget(step, self.init_rank * len(layers), self.target_rank * len(layers), first, last)
                keep_best_triplets(layers, triplets)
            if due or step > last:
                for tensors in layers:
                    tensors["E"].masked_fill_(~tensors["kept"], 0)

    def update_sensitivity(self, tensors: Tensors) -> None:
        """Smooths the sensitivity of every number and how much it varies."""
        for key in TRIPLET:
            parameter = tensors[key]
            if parameter.grad is None:
                continue
            now = (parameter * parameter.grad).abs()
            smooth = tensors[f"sensitivity_{key}"].lerp_(now, 1 - self.beta1)
            tensors[f"uncertainty_{key}"].lerp_((now - smooth).abs(), 1 - self.beta2)


def allocation_window(steps: int, warm: float, final: float) -> tuple[int, int]:
    """(last step before ranks change, step at which they change for the last time)."""
    return round(warm * steps), steps - max(1, round(final * steps))


def rank_budget(step: int, start: int, target: int, first: int, last: int) -> int:
    """Triplets of all layers together that may be kept after a step."""
    if step >= last:
        return target
    if step <= first:
        return start
    return int(target + (start - target) * (1 - (step - first) / (last - first)) ** 3)


def triplet_scores(tensors: Tensors) -> torch.Tensor:
    """The importance `[rank]` of each triplet of a layer."""
    a, e, b = (tensors[f"sensitivity_{key}"] * tensors[f"uncertainty_{key}"] for key in TRIPLET)
    return e + a.mean(1) + b.mean(0)


def keep_best_triplets(layers: list[Tensors], triplets: int) -> None:
    """Notes in `kept` which triplets are the best of all layers; those tied with the best dropped one go with it."""
    import torch

    found = [triplet_scores(tensors) for tensors in layers]
    ordered = torch.cat(found).sort().values
    dropped = len(ordered) - triplets
    for tensors, own in zip(layers, found):
        tensors["kept"].copy_(own > ordered[dropped - 1] if dropped else torch.ones_like(own))


def orthogonality_error(rows: torch.Tensor, live: torch.Tensor | None = None) -> torch.Tensor:
    """‖R Rᵀ − I‖_F, 0 where the rows are orthonormal; of the rows alone where `live` is 1."""
    import torch

    live = torch.ones(len(rows), device=rows.device) if live is None else live
    rows = rows * live[:, None]
    return torch.linalg.norm(rows @ rows.T - torch.diag(live))
