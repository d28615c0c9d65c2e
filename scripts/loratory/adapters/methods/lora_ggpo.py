"""LoRA-GGPO: LoRA under gradient-guided noise on the merged weight (Chang et al. 2025, arXiv:2502.14538v1).

In training y = (W' + ε) x with W' = W + s · B A; for each row i of it ε_i ~ N(0, σ_i² I) and
σ_i² = (sigma² / n) · (‖W'_i‖² + beta · ‖g_i‖²), where g = s · (B ∇A + ∇B A) estimates the gradient of W' from those of
the factors. Otherwise y = W' x.

Project interpretation: n is the number of inputs; the norms are those of the step before (its gradients clipped); ε is
drawn once a step, so that a step that is computed again (gradient checkpointing) is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from loratory.adapters.methods import lora

if TYPE_CHECKING:
    import torch

    from loratory.adapters.contract import Parameters, Tensors
    from loratory.adapters.core import AdaptedLinear
    from loratory.training.session import AdapterSession


class Method(lora.Method):
    """LoRA, and in training noise that grows with each row's weights and gradients."""

    replayable: ClassVar[bool] = False  # noise is drawn from a seed that the host must know
    fixed: ClassVar[frozenset[str]] = frozenset({"weight_squares", "gradient_squares", "noise_seed"})

    sigma: float = Field(0.03, ge=0, description="length of a row's noise over that of its weights")
    beta: float = Field(0.01, ge=0, description="share of the squared gradient in the squared length")

    def initial_tensors(self, weight: torch.Tensor, generator: torch.Generator) -> Tensors:
        import torch

        squares = weight.square().sum(1)  # B = 0: W' is W
        noise = {"weight_squares": squares, "gradient_squares": torch.zeros_like(squares)}
        return super().initial_tensors(weight, generator) | noise | {"noise_seed": torch.tensor(0)}

    def forward(self, x: torch.Tensor, tensors: Tensors, training: bool) -> torch.Tensor:
        added = super().forward(x, tensors, training)
        if not training:
            return added
        variance = (tensors["weight_squares"] + self.beta * tensors["gradient_squares"]) / x.shape[-1]
        return added + noise_function()(x, self.sigma * variance.sqrt(), int(tensors["noise_seed"]))

    def before_step(self, session: AdapterSession, step: int) -> None:
        import numpy as np

        seeds = np.random.default_rng([session.seed, step]).integers(2**62, size=len(session.layers))
        for layer, seed in zip(session.layers.values(), seeds.tolist()):
            layer.tensors["noise_seed"].fill_(seed)

    def create_optimizer(self, session: AdapterSession, parameters: Parameters) -> torch.optim.Optimizer:
        """LoRA's, which measures before it moves: gradients and factors must be of one point."""
        optimizer = super().create_optimizer(session, parameters)
        optimizer.register_step_pre_hook(lambda *_: self.measure_norms(session.layers.values()))
        return optimizer

    def measure_norms(self, layers: Iterable[AdaptedLinear]) -> None:
        """Notes the squared norms of the rows of W' and of the estimated gradient."""
        import torch

        with torch.no_grad():
            for layer in layers:
                a, b, tensors = layer.adapter["A"], layer.adapter["B"], layer.tensors
                merged, gradient = layer.weight + self.scale * (b @ a), self.scale * (b @ a.grad + b.grad @ a)
                tensors["weight_squares"].copy_(merged.square().sum(1))
                tensors["gradient_squares"].copy_(gradient.square().sum(1))


def normal_noise(seed: int, shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    import torch

    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=dtype, device=device)


@cache
def noise_function() -> Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]:
    """(x, standard deviations of ε's rows, seed) -> ε x; backward draws the large ε again instead of keeping it."""
    import torch
    from torch.nn.functional import linear

    class Noise(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor, deviations: torch.Tensor, seed: int) -> torch.Tensor:
            ctx.save_for_backward(deviations)
            ctx.drawn = seed, (len(deviations), x.shape[-1]), x.dtype, x.device
            return linear(x, normal_noise(*ctx.drawn)) * deviations

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
            (deviations,) = ctx.saved_tensors
            again = normal_noise(*ctx.drawn)
            return (gradient * deviations).to(again.dtype) @ again, None, None

    return Noise.apply
