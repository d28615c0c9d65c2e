"""LoRA-FA: LoRA with a frozen random A, whose B follows the full gradient as nearly as it can (Zhang et al. 2023,
arXiv:2308.03303).

y = W x + s · B A x as in FFA-LoRA. With G the gradient of W, that of B is s G Aᵀ, and of all steps g̃ of B the one
whose change of W is nearest to G is g̃ = s⁻² (∂L/∂B) (A Aᵀ)⁻¹: this is what Adam is given, as in PEFT's optimizer.
For every parameter, with the gradient g (g̃ of B, clipped before it is multiplied):

    m ← β₁ m + (1 − β₁) g        v ← β₂ v + (1 − β₂) g²
    p ← p − η √(1 − β₂ᵗ) / (1 − β₁ᵗ) · m / (√v + ε),   then   p ← p − η · decay · p

What is saved is memory: A has neither moments nor gradients, and of a layer's input only A x is kept for B's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from loratory.adapters.adam import adam_direction
from loratory.adapters.methods import ffa_lora

if TYPE_CHECKING:
    import torch

    from loratory.adapters.contract import Parameters
    from loratory.training.session import AdapterSession

RIDGE = 1e-8  # added to the diagonal of A Aᵀ


class Method(ffa_lora.Method):
    """y = W x + s · B A x with a fixed random A; Adam of B sees s⁻² (∂L/∂B) (A Aᵀ)⁻¹."""

    def create_optimizer(self, session: AdapterSession, parameters: Parameters) -> torch.optim.Optimizer:
        layers, recipe = session.layers.values(), session.recipe
        preconditioners = {layer.adapter["B"]: self.gradient_preconditioner(layer.tensors["A"]) for layer in layers}
        options = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay}
        return preconditioned_adamw_class()(parameters.values(), preconditioners, options)

    def gradient_preconditioner(self, a: torch.Tensor) -> torch.Tensor:
        """s⁻² (A Aᵀ)⁻¹ `[rank, rank]`, by which the gradient of B is multiplied on the right."""
        import torch

        return torch.linalg.pinv(a @ a.T + RIDGE * torch.eye(len(a), device=a.device)) / self.scale**2


@cache
def preconditioned_adamw_class() -> Callable[..., torch.optim.Optimizer]:
    """The optimizer's class, made here because torch is not imported while configs are read."""
    import torch

    class PreconditionedAdamW(torch.optim.Optimizer):
        """Adam on gradients that are multiplied by a matrix each, with the decay after the step."""

        def __init__(
            self, parameters: Any, preconditioners: dict[torch.Tensor, torch.Tensor], options: dict[str, float]
        ):
            super().__init__(parameters, options)
            self.preconditioners = preconditioners

        @torch.no_grad()
        def step(self, closure: None = None) -> None:  # type: ignore[override]  # takes no closure
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        direction = adam_direction(self.adam_gradient(parameter), self.state[parameter])
                        parameter.add_(direction, alpha=-group["lr"])
                        parameter.mul_(1 - group["lr"] * group["weight_decay"])

        def adam_gradient(self, parameter: Any) -> torch.Tensor:
            if parameter in self.preconditioners:
                return parameter.grad @ self.preconditioners[parameter]
            return parameter.grad

    return PreconditionedAdamW
