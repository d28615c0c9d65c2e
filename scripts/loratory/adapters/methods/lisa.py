"""LISA: full fine-tuning of a few random transformer layers at a time (Pan et al. 2024, arXiv:2403.17919).

    W ← W − η · AdamW(∂L/∂W)   in steps i·period … (i + 1)·period − 1

for `layers` of the transformer's layers, drawn uniformly without replacement, and for everything outside the layers
(embeddings, final norm, head); the other layers rest. The layers of an encoder and of a decoder are one list to draw
from (project interpretation). A new draw starts all of the optimizer's moments anew, as the paper's separate launches
did: also those of embeddings, norms and head, which train on, so that their first steps after a draw follow the sign
of one gradient. With `reset_state: false` all moments are kept, as by the authors' released callback, which resets
none. In the end every weight may have changed: the change of the weights is dense.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from loratory.adapters.methods import full_ft
from loratory.errors import InputError

if TYPE_CHECKING:
    import torch

    from loratory.training.session import AdapterSession


class Method(full_ft.Method):
    """AdamW on random transformer layers, drawn anew in every period, and on all that is outside the layers."""

    layers: int = Field(2, ge=1, description="transformer layers trained at a time")
    period: int = Field(20, ge=1, description="steps between two draws of layers")
    reset_state: bool = Field(
        True,
        description="forget the optimizer's moments at every draw, those of embeddings and head too; the authors' "
        "released code keeps all",
    )

    def trained_weights(self, model: torch.nn.Module) -> list[str]:
        count = len(transformer_layers(model))
        if self.layers > count:
            raise InputError(type(model).__name__, "more `layers` than the base has", self.layers, f"at most {count}")
        return super().trained_weights(model)

    def before_step(self, session: AdapterSession, step: int) -> None:
        """Set at every step, not at draws alone, so that a resumed training is right in the middle of a period."""
        stack = transformer_layers(session.model)
        active = sample_layers(session.seed, step // self.period, len(stack), self.layers)
        for index, layer in enumerate(stack):
            for parameter in layer.parameters():
                parameter.requires_grad_(index in active)
                parameter.grad = None  # AdamW would move a frozen weight that still has one
        if self.reset_state and step % self.period == 0:
            session.optimizing.state.clear()


def sample_layers(seed: int, period: int, count: int, layers: int) -> set[int]:
    """The layers that a period trains: `layers` distinct ones out of `count`."""
    import numpy as np

    return set(np.random.default_rng([seed, period]).choice(count, layers, replace=False).tolist())


def transformer_layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The members of the outermost module lists that hold linear layers, in the model's order.

    Lists inside a layer (experts) are part of it; stacks of convolutions are no transformer layers.
    """
    from torch.nn import ModuleList

    from loratory.adapters.core import LINEAR, is_inside

    lists = {name: module for name, module in model.named_modules() if isinstance(module, ModuleList)}
    outermost = [name for name in lists if not is_inside(name, tuple(other for other in lists if other != name))]
    members = [member for name in outermost for member in lists[name]]
    return [member for member in members if any(isinstance(part, LINEAR) for part in member.modules())]
