"""Differential privacy of single training examples, by Opacus: what a step does, and what it costs.

A step draws every example with the same probability, cuts each one's gradient (of all trained numbers together) to a
norm, adds Gaussian noise to the sum, and divides by the number of examples that was expected. Each gradient is that of
one example that is alone in its batch: slower than gradients of a batch taken apart, and right whatever the model does
with a batch. A layer that remembers, in training, what other examples were like is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from opacus.accountants import RDPAccountant
from opacus.accountants.utils import get_noise_multiplier
from opacus.optimizers import DPOptimizer
from opacus.utils.uniform_sampler import UniformWithReplacementSampler
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from loratory.adapters.contract import Parameters
from loratory.errors import InputError


@dataclass(frozen=True)
class Privacy:
    """What a client promises about each of its examples.

    Attributes:
        epsilon, delta: of all its steps together, by Opacus' accountant of Rényi divergences.
        largest_norm: that an example's gradient is cut to. batch: examples that a step is expected to draw.
        steps: that the noise is enough for.
    """

    epsilon: float
    delta: float
    largest_norm: float
    batch: int
    steps: int

    def sampling_rate(self, examples: int) -> float:
        """The probability with which a step draws one of so many examples."""
        return min(1.0, self.batch / examples)

    def noise_multiplier(self, examples: int) -> float:
        """Standard deviation of the noise on a sum of gradients over `largest_norm`.

        Raises:
            InputError: no noise is enough.
        """
        return enough_noise(self.epsilon, self.delta, self.sampling_rate(examples), self.steps)

    def spent_epsilon(self, examples: int, steps: int) -> float:
        """ε of a client that has taken so many steps."""
        accountant = RDPAccountant()
        accountant.history = [(self.noise_multiplier(examples), self.sampling_rate(examples), steps)]
        return float(accountant.get_epsilon(self.delta)) if steps else 0.0

    def private_optimizer(
        self, optimizer: torch.optim.Optimizer, examples: int, generator: torch.Generator
    ) -> DPOptimizer:
        return DPOptimizer(
            optimizer,
            noise_multiplier=self.noise_multiplier(examples),
            max_grad_norm=self.largest_norm,
            expected_batch_size=self.sampling_rate(examples) * examples,
            generator=generator,
        )

    def draw_examples(self, examples: int, generator: torch.Generator) -> list[int]:
        """The places of a step's examples, each drawn for itself; there may be none."""
        rate = self.sampling_rate(examples)
        return next(iter(UniformWithReplacementSampler(num_samples=examples, sample_rate=rate, generator=generator)))


@cache
def enough_noise(epsilon: float, delta: float, rate: float, steps: int) -> float:
    try:
        return get_noise_multiplier(target_epsilon=epsilon, target_delta=delta, sample_rate=rate, steps=steps)
    except ValueError as error:
        fix = "raise `epsilon` or `delta`, or take fewer steps"
        raise InputError("lifecycle", f"no noise is enough for {steps} private steps", epsilon, fix=fix) from error


def take_private_step(
    optimizer: DPOptimizer, parameters: Parameters, gradients: Iterable[Sequence[torch.Tensor]]
) -> None:
    """One step of the noised mean of clipped gradients.

    Args:
        gradients: of each example, those of the parameters in their order. Only one example's are held at a time.
    """
    trained = [*parameters.values()]
    for own in gradients:
        optimizer.signal_skip_step(True)  # adds to the sum, and no more
        for parameter, gradient in zip(trained, own, strict=True):
            parameter.grad_sample = gradient[None]  # type: ignore[attr-defined]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    optimizer.signal_skip_step(False)
    for parameter in trained:  # none is left; a step that drew no example is noise alone
        parameter.grad_sample = parameter.new_zeros(0, *parameter.shape)  # type: ignore[attr-defined]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def refuse_coupled_layers(model: nn.Module, where: str) -> None:
    """Raises:
    InputError: a layer's output for an example depends on other examples, of its batch or of earlier ones.
    """
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) or (isinstance(module, _InstanceNorm) and module.track_running_stats):
            what, expected = f"{name} mixes examples, so that none is private", "a base with LayerNorm or the like"
            raise InputError(where, what, type(module).__name__, expected, "leave out `epsilon` (`epsilon: null`)")
