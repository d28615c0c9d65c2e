"""Several adapters of one method on one base in one pass: a batch has equal parts of rows, one for each adapter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

from loratory.adapters.contract import Method, Tensors
from loratory.adapters.core import AdaptedConv, AdaptedLinear, bare_layer
from loratory.bases.core import Base

# What a step of a method may do besides following its gradients; each adapter of a stack would have to do it alone.
OWN = ("layer_output", "before_step", "step_penalty", "after_step", "state_tensors", "trained_weights")


def stack_refusal(base: Base, method: Method) -> str:
    """Why adapters of this method cannot learn in one pass; "" if they can."""
    own = [name for name in OWN if getattr(type(method), name) is not getattr(Method, name)]
    if own:
        return f"the method has a {own[0]} of its own"
    if base.heads:
        return f"the base has a head that is learnt ({base.heads[0]})"
    if type(base).row_losses is Base.row_losses:
        return f"a {base.family} base does not tell the losses of single rows"
    if getattr(method, "dropout", 0) or draws_dropout(base.model):
        return "dropout draws for all rows together"
    return ""


def draws_dropout(model: nn.Module) -> bool:
    """Whether a pass in training mode leaves out numbers at random."""
    own = any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())
    config = getattr(model, "config", None)
    values = config.to_dict().items() if config is not None else ()
    return own or any("drop" in name and isinstance(value, float) and value > 0 for name, value in values)


class StackedLinear(nn.Module):
    """A frozen linear layer and the adapters that several trainings have on it.

    Parameters of the adapters become views of the stacked ones: what moves one moves the other.

    Args:
        runs: the layer as each training adapts it, all alike.
    """

    def __init__(self, runs: Sequence[AdaptedLinear]) -> None:
        super().__init__()
        first, self.count = runs[0], len(runs)
        self.base, self.method = first.base, first.method
        self.runs = list(runs)  # a plain list of theirs: they are no modules of the model's
        self.adapter = nn.ParameterDict()
        for key in first.adapter:
            joint = nn.Parameter(torch.stack([run.adapter[key].detach() for run in runs]))
            self.adapter[key] = joint
            for run, own in zip(runs, joint.detach()):
                run.adapter[key].data = own
        for key in first._buffers:
            self.register_buffer(key, torch.stack([run.get_buffer(key) for run in runs]))

    @property
    def tensors(self) -> Tensors:
        """By the names that the method gave them, `[runs, …]`."""
        return {**self.adapter, **{key.removeprefix("fixed_"): tensor for key, tensor in self._buffers.items()}}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[runs · rows, …, in]` → `[runs · rows, …, out]`."""
        tensors = self.tensors
        parts = x.unflatten(0, (self.count, -1)).to(next(iter(tensors.values())).dtype)
        added = torch.vmap(partial(self.method.forward, training=self.training))(parts, tensors)
        return self.base(x) + added.flatten(0, 1).to(x.dtype)

    def share_gradients(self) -> None:
        """Gives each run's parameters the gradients of the last backward pass, as views, and forgets its own."""
        for key, joint in self.adapter.items():
            gradient = joint.grad
            assert gradient is not None  # every stacked tensor takes part in every pass
            for run, own in zip(self.runs, gradient):
                run.adapter[key].grad = own
            joint.grad = None


@contextmanager
def stack_adapters(model: nn.Module, runs: Sequence[Mapping[str, AdaptedLinear]]) -> Iterator[list[StackedLinear]]:
    """Inside, all runs' adapters are on the model's layers together; outside, none is.

    Args:
        runs: {layer: its adapter} of each training, as `core.attach` returns it.
    """
    layers = {name: StackedLinear([run[name] for run in runs]) for name in runs[0]}
    for name, layer in layers.items():
        model.set_submodule(name, layer)
    try:
        yield list(layers.values())
    finally:
        for name in layers:
            model.set_submodule(name, bare_layer(runs[0][name]))


@contextmanager
def place_layers(model: nn.Module, layers: Mapping[str, AdaptedLinear]) -> Iterator[None]:
    """Inside, one run's adapters are on the model's layers."""
    for name, layer in layers.items():
        model.set_submodule(name, layer)
    try:
        yield
    finally:
        for name, layer in layers.items():
            model.set_submodule(name, bare_layer(layer))


def are_alike(runs: Sequence[Mapping[str, AdaptedLinear]]) -> bool:
    """Whether the same linear layers have adapters of one shape in all runs."""

    def shapes(run: Mapping[str, AdaptedLinear]) -> dict[str, object]:
        return {
            name: (layer.method, {key: tensor.shape for key, tensor in layer.tensors.items()})
            for name, layer in run.items()
        }

    convolved = any(isinstance(layer, AdaptedConv) for run in runs for layer in run.values())
    return not convolved and all(shapes(run) == shapes(runs[0]) for run in runs)
