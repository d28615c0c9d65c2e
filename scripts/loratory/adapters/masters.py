"""Weights that a method trains of a base in half precision: copies in float32 move, and the base holds them rounded.

bf16 tells numbers 0.4 % apart, and most steps of an optimizer are shorter: added to the weight itself they would be
rounded away. The model computes with the rounded copies, as it will where the trained change is applied again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import nn


class Master(NamedTuple):
    """The float32 copy of a parameter, and the hook by which it gets the gradients."""

    copy: nn.Parameter
    hook: Any


MASTERS: WeakKeyDictionary[nn.Module, dict[str, Master]] = WeakKeyDictionary()


def keep_masters(model: nn.Module, names: Iterable[str]) -> None:
    """Makes a master of each of these parameters that is in half precision."""
    parameters, kept = dict(model.named_parameters()), MASTERS.setdefault(model, {})
    for name in names:
        if parameters[name].dtype in (torch.bfloat16, torch.float16):
            copy = nn.Parameter(parameters[name].detach().float())
            kept[name] = Master(copy, parameters[name].register_post_accumulate_grad_hook(gradient_mover(copy)))


def gradient_mover(master: nn.Parameter) -> Callable[[torch.Tensor], None]:
    """Moves a parameter's gradient to its master, where those of micro-batches are added in float32."""

    def move_gradient(parameter: torch.Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        assert gradient is not None  # the hook runs once it is there
        master.grad = gradient.float() if master.grad is None else master.grad.add_(gradient)

    return move_gradient


def master_copies(model: nn.Module) -> dict[str, nn.Parameter]:
    """{parameter name: its float32 copy}; none of a base in float32."""
    return {name: master.copy for name, master in MASTERS.get(model, {}).items()}


@torch.no_grad()
def round_masters(model: nn.Module) -> None:
    """Lets the model hold its masters as they are now, rounded."""
    for name, copy in master_copies(model).items():
        model.get_parameter(name).copy_(copy)


def drop_masters(model: nn.Module) -> None:
    for master in MASTERS.pop(model, {}).values():
        master.hook.remove()
