"""GaLore: full fine-tuning with Adam's moments in a low-rank projection of the gradient (Zhao et al. 2024,
arXiv:2403.03507).

For a weight W `[m, n]` with m ≥ n and gradient G = U Σ Vᵀ; one with m < n is treated as its transpose, so that the
smaller side is the one that is compressed:

    P = Vᵀ[:rank], anew every `update_gap` steps        R = G Pᵀ
    M ← β₁ M + (1 − β₁) R                               V ← β₂ V + (1 − β₂) R²
    W ← W − η √(1 − β₂ᵗ) / (1 − β₁ᵗ) · scale · M / (√V + ε) P,   then   W ← W − η · decay · W

The moments stay as they are when P changes, so the signs of its rows count: a row that comes back with the other sign
meets the moments of its opposite. The authors' code takes the signs that the SVD routine happens to give, so that its
own result depends on the routine from the second projection on. Here each row's largest entry is positive, whatever
routine is used; given these rows, the authors' optimizer makes the same steps.

Everything else (embeddings, norms, biases, heads) follows plain AdamW. What is saved is the optimizer's memory; the
change of the weights is dense.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from pydantic import Field

from loratory.adapters.adam import BETAS, EPS, adam_direction
from loratory.adapters.methods import full_ft
from loratory.errors import InputError
from loratory.fields import Modules

if TYPE_CHECKING:
    import torch

    from loratory.adapters.contract import Parameters
    from loratory.adapters.core import Linear
    from loratory.training.session import AdapterSession


class Method(full_ft.Method):
    """W ← W − η · scale · Adam(G Pᵀ) P with P the leading right singular vectors of G. Defaults: its fine-tuning."""

    target_modules: Modules | None = Field(  # type: ignore[assignment]  # an option again
        None,
        description="linear layers whose gradient is projected, by name; none: all but the head",
    )
    rank: int = Field(4, ge=1, description="rank of the projected gradient")
    update_gap: int = Field(500, ge=1, description="steps between two projections")
    scale: float = Field(4.0, gt=0, description="multiplies the projected weights' steps")

    def create_optimizer(self, session: AdapterSession, parameters: Parameters) -> torch.optim.Optimizer:
        from loratory.adapters import core

        layers = core.target_layers(session.model, self.target_modules, session.base.heads)
        linear = core.linear_layers(session.model, session.base.heads)
        if convs := layers.keys() - linear.keys():
            where = f"{type(session.model).__name__}: target_modules"
            raise InputError(where, "the gradient of a convolution is not projected", min(convs), "linear layers")
        groups: dict[bool, list[torch.Tensor]] = {turned: [] for turned in (False, True)}
        for name in layers:
            groups[needs_transpose(linear[name])].append(parameters[f"{name}.weight"])
        projected = {weight for group in groups.values() for weight in group}
        plain = session.adamw_optimizer([p for p in parameters.values() if p not in projected], betas=BETAS, eps=EPS)
        return projected_adamw_class()(self, groups, plain)


def needs_transpose(layer: Linear) -> bool:
    """Whether the weight is to be transposed, as it is stored, to become tall (or square, as `[out, in]`)."""
    from loratory.adapters.core import Conv1D, weight_of

    out, inner = weight_of(layer).shape
    return isinstance(layer, Conv1D) != (out < inner)


def projection_basis(gradient: torch.Tensor, rank: int) -> torch.Tensor:
    """P `[rank, n]`: the leading right singular vectors of a tall gradient `[m, n]`, each with its largest entry
    positive: a direction that stays from one projection to the next keeps its sign, and so its moments."""
    from loratory.adapters.spectrum import leading_singular_vectors

    vectors, _, _ = leading_singular_vectors(gradient.T, rank)
    return vectors.T.contiguous()


@cache
def projected_adamw_class() -> Callable[..., torch.optim.Optimizer]:
    """The optimizer's class, made here because torch is not imported while configs are read."""
    import torch

    class ProjectedAdamW(torch.optim.Optimizer):
        """GaLore for its own groups, `plain` for the rest."""

        def __init__(self, method: Method, groups: dict[bool, list[torch.Tensor]], plain: torch.optim.AdamW):
            defaults = {key: plain.defaults[key] for key in ("lr", "weight_decay")}
            super().__init__([{"params": params, "turned": turned} for turned, params in groups.items()], defaults)
            self.method, self.plain, self.own = method, plain, list(self.param_groups)
            self.param_groups += plain.param_groups
            plain.state = self.state  # one state, where checkpoints look for it

        @torch.no_grad()
        def step(self, closure: None = None) -> None:  # type: ignore[override]  # takes no closure
            self.plain.step()
            for group in self.own:
                for weight in group["params"]:
                    if weight.grad is not None:
                        self.update_weight(weight, group)

        def update_weight(self, weight: torch.Tensor, group: dict[str, Any]) -> None:
            tall = (lambda tensor: tensor.T) if group["turned"] else (lambda tensor: tensor)
            direction = self.projected_direction(tall(weight.grad).float(), self.state[weight])
            tall(weight).add_(direction.to(weight.dtype), alpha=-group["lr"] * self.method.scale)
            weight.mul_(1 - group["lr"] * group["weight_decay"])

        def projected_direction(self, gradient: torch.Tensor, state: dict[str, Any]) -> torch.Tensor:
            """Adam's bias-corrected step in the projection, brought back to `[m, n]`."""
            if int(state.get("step", 0)) % self.method.update_gap == 0:
                state["projection"] = projection_basis(gradient, self.method.rank)
            return adam_direction(gradient @ state["projection"].T, state) @ state["projection"]

    return ProjectedAdamW
