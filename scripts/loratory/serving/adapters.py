"""A set of adapters on one base: which can be in it, putting it on, and taking it off again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from torch import nn
from transformers import PreTrainedModel

from loratory.adapters.core import Linear, adaptable_layers, check_fit
from loratory.adapters.deltas import Adapter
from loratory.errors import InputError
from loratory.serving.layers import RowwiseConv, RowwiseHead, RowwiseLinear
from loratory.serving.rows import RowContext, RowOwners

ROUTED = ".experts."  # in the names of layers that read tokens, which a router sends there, and not rows


def refusal_reason(model: PreTrainedModel, adapter: Adapter) -> str | None:
    """Why the adapter cannot share a batch with others; None if it can: its changes are of low rank, and what it has
    trained whole are linear layers."""
    if adapter.own:
        name, own = next(iter(adapter.own.items()))
        return f"the change of {name} depends on the input ({own.kind})"
    if adapter.dense:
        return f"the change of {next(iter(adapter.dense))} has no low rank"
    head = model.get_output_embeddings()
    for name in adapter.heads:
        module = model.get_submodule(name.rpartition(".")[0])
        if not isinstance(module, nn.Linear) or module is head:
            return f"{name} is trained whole and not of a linear layer"
    routed = [name for name in adapter.deltas if ROUTED in name]
    return f"{routed[0]} reads tokens that a router chooses" if routed else None


class AdapterSet:
    """Several adapters on one base, unmerged; each row of a batch is of one of them, or of none.

    Args:
        adapters: {name: adapter}. where: {name: what an error names}, such as its folder.

    Raises:
        InputError: an adapter does not fit the model, or `refusal_reason` has one.
    """

    def __init__(self, model: PreTrainedModel, adapters: Mapping[str, Adapter], where: Mapping[str, Path | str]):
        self.model, self.names, self.context = model, list(adapters), RowContext()
        self.bare: dict[str, nn.Module] = {}
        for adapter, name in {id(adapter): (adapter, name) for name, adapter in adapters.items()}.values():
            check_fit(model, adapter, where[name])
            if reason := refusal_reason(model, adapter):
                fix = "let it answer alone"
                raise InputError(where[name], "the adapter cannot share a batch", reason, "a low-rank change", fix)
        self.places = {name: place for place, name in enumerate(self.names)}
        given = [*adapters.values(), Adapter()]  # the last is nobody's: rows of the bare base
        layers = adaptable_layers(model)
        self.put_heads(given)
        self.put_changes(given, layers)

    def put_heads(self, adapters: Sequence[Adapter]) -> None:
        for name in sorted({name.rpartition(".")[0] for adapter in adapters for name in adapter.heads}):
            parts = ([adapter.heads.get(f"{name}.{part}") for adapter in adapters] for part in ("weight", "bias"))
            layer = cast(nn.Linear, self.model.get_submodule(name))
            self.replace_layer(name, RowwiseHead(layer, self.context, *parts))

    def put_changes(self, adapters: Sequence[Adapter], layers: Mapping[str, Linear | nn.Conv1d]) -> None:
        for name in sorted({name for adapter in adapters for name in adapter.deltas}):
            deltas, layer = [adapter.deltas.get(name) for adapter in adapters], layers[name]
            if isinstance(layer, nn.Conv1d):
                self.replace_layer(name, RowwiseConv(layer, self.context, deltas))
            else:  # what others have trained whole may stand in its place
                own = cast(Linear, self.model.get_submodule(name))
                self.replace_layer(name, RowwiseLinear(own, self.context, deltas))

    def replace_layer(self, name: str, layer: nn.Module) -> None:
        self.bare.setdefault(name, self.model.get_submodule(name))
        self.model.set_submodule(name, layer.eval().requires_grad_(False))

    @contextmanager
    def use_rows(self, names: Sequence[str | None]) -> Iterator[None]:
        """Inside, row i of a batch is of the adapter `names[i]`, or of the bare base where it is None.

        Rows of one adapter are best next to each other. An encoder's rows may be repeated, each as often.
        """
        with self.context.use_owners(RowOwners([self.place(name) for name in names], self.model.device)):
            yield

    def place(self, name: str | None) -> int:
        """Of an adapter in the set; nobody's is the last."""
        return len(self.names) if name is None else self.places[name]

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """Inside, the base is bare; the set is on it again afterwards."""
        on = {name: self.model.get_submodule(name) for name in self.bare}
        for name, layer in self.bare.items():
            self.model.set_submodule(name, layer)
        try:
            yield
        finally:
            for name, layer in on.items():
                self.model.set_submodule(name, layer)

    def remove(self) -> None:
        """Puts the bare layers back."""
        for name, layer in self.bare.items():
            self.model.set_submodule(name, layer)
        self.bare = {}
