"""Flexora: LoRA on the transformer layers that help unseen examples (Wei et al. 2024, arXiv:2408.10774).

Stage 1 trains y = W x + α_i s B A x with one weight α_i = N softmax(α̂)_i for all matrices of transformer layer i of N.
In turns, A and B take a step on training examples, and α̂ one of Adam on held-out ones along ∂L_valid/∂α̂ at the present
A and B (first order, as the released code; the paper differentiates through the training steps). Stage 2 is plain LoRA
from a fresh start on the layers with α̂_i > 0 alone; the others are bare. The passes of stage 1 are counted.

Project interpretation: encoder and decoder layers share one softmax; matrices outside any stack are a group each; the
layer with the largest α̂ is kept if none is positive; a model with one group is not searched; stage 2 has the held-out
examples too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from pydantic import Field

from loratory.adapters.methods import lora

if TYPE_CHECKING:
    import torch

    from loratory.adapters import contract
    from loratory.adapters.contract import Parameters
    from loratory.adapters.core import AdaptedLinear
    from loratory.bases.core import Encoded
    from loratory.training.session import AdapterSession


class Method(lora.Method):
    """LoRA on the transformer layers whose weight rose in a search on held-out training examples."""

    search: float = Field(0.25, gt=0, description="steps of the search as a share of the training's steps")
    hyper_rate: float = Field(0.01, gt=0, description="learning rate of the layers' weights")
    validation_batches: int = Field(8, ge=1, description="held-out batches that a step of the weights sums over")
    held: float = Field(0.04, gt=0, lt=1, description="share of the training examples that the search holds out")

    def prepare_training(self, session: AdapterSession) -> None:
        import torch

        from loratory.adapters import core

        groups = layer_groups(session.layers)
        if len(groups) == 1:
            return
        start = {name: p.detach().clone() for name, p in core.trainable_parameters(session.model).items()}
        chosen = positive_groups(self.search_weights(session, groups))
        with torch.no_grad():
            for name, parameter in core.trainable_parameters(session.model).items():
                parameter.copy_(start[name])
        for name in [name for group, names in groups.items() if group not in chosen for name in names]:
            session.model.set_submodule(name, core.bare_layer(session.layers.pop(name)))

    def search_weights(self, session: AdapterSession, groups: dict[str, list[str]]) -> dict[str, float]:
        """{group: α̂} after the search."""
        import torch

        from loratory.adapters import core

        learned = core.trainable_parameters(session.model)
        steps = max(1, round(self.search * session.recipe.steps))
        recipe = session.recipe.model_copy(update={"steps": steps})
        train, valid = map(session.batch_function, hold_out(session.items, self.held, session.seed))
        raw = torch.zeros(len(groups), device=next(iter(learned.values())).device, requires_grad=True)
        optimizer, hyper = self.create_optimizer(session, learned), torch.optim.Adam([raw], lr=self.hyper_rate)
        with apply_group_weights(session.layers, groups, raw):
            for step in range(steps):
                for group in optimizer.param_groups:
                    group["lr"] = recipe.learning_rate_at(step) * group.get("ratio", 1)
                train_step(session, train(step), learned, optimizer)
                first = step * self.validation_batches
                raw.grad = alpha_gradient(session, [valid(first + i) for i in range(self.validation_batches)], raw)
                hyper.step()
        return dict(zip(groups, raw.tolist()))


def layer_groups(names: Iterable[str]) -> dict[str, list[str]]:
    """{path up to its first integer, such as `model.layers.3`: the adapted matrices inside}."""
    groups: dict[str, list[str]] = {}
    for name in names:
        found = re.match(r"(.*?\.)??\d+(?=\.|$)", name)
        groups.setdefault(found[0] if found else name, []).append(name)
    return groups


def positive_groups(weights: dict[str, float]) -> set[str]:
    """The groups with α̂ > 0, never none."""
    return {group for group, weight in weights.items() if weight > 0} or {max(weights, key=weights.__getitem__)}


def hold_out(items: Sequence[Encoded], share: float, seed: int) -> tuple[list[Encoded], list[Encoded]]:
    """(what the search trains on, what it holds out)."""
    import numpy as np

    order = np.random.default_rng([seed, 0]).permutation(len(items))
    held = max(1, round(share * len(items)))
    return [items[i] for i in sorted(order[held:])], [items[i] for i in sorted(order[:held])]


def train_step(session: AdapterSession, batch: dict, learned: Parameters, optimizer: torch.optim.Optimizer) -> None:
    """One step of A and B (and of heads), which leaves α̂ and its gradient alone."""
    import torch

    parameters = list(learned.values())
    session.loss(batch).backward(inputs=parameters)
    torch.nn.utils.clip_grad_norm_(parameters, session.recipe.clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def alpha_gradient(session: AdapterSession, batches: list[dict], raw: torch.Tensor) -> torch.Tensor:
    """∂/∂α̂ of the batches' losses at the present A and B, which get no gradient; without dropout."""
    import torch

    training = session.model.training
    session.model.eval()
    total = cast("torch.Tensor", sum(torch.autograd.grad(session.loss(batch), raw)[0] for batch in batches))
    session.model.train(training)
    return total


@dataclass(frozen=True)
class WeightedMethod:
    """Stands for a layer's method in the search: its change times α of the group at `index`."""

    method: contract.Method
    raw: torch.Tensor
    index: int

    def layer_output(self, layer: AdaptedLinear, x: torch.Tensor) -> torch.Tensor:
        weight = len(self.raw) * self.raw.softmax(0)[self.index]
        added = self.method.forward(x.to(layer.dtype), layer.tensors, layer.training)
        return layer.base(x) + (weight * added).to(x.dtype)


@contextmanager
def apply_group_weights(
    layers: dict[str, AdaptedLinear], groups: dict[str, list[str]], raw: torch.Tensor
) -> Iterator[None]:
    """The layers with their groups' weights in force."""
    methods = {name: layer.method for name, layer in layers.items()}
    for index, names in enumerate(groups.values()):
        for name in names:
            layers[name].method = cast("contract.Method", WeightedMethod(methods[name], raw, index))
    try:
        yield
    finally:
        for name, method in methods.items():
            layers[name].method = method
