"""Rows of mixtures in a batch with rows of single adapters and of the bare base.

A mixture's layers stand around those of the adapters. It weighs its own rows as it would alone, after a pass of theirs
without experts where its gate reads one; at all other rows its experts have weight 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import Cache, PretrainedConfig

from loratory.bases.decoding import empty_cache
from loratory.errors import InputError
from loratory.mixers.contract import GateInput
from loratory.mixers.core import Mixture, PairCache
from loratory.mixers.layers import LayerWeights, Linear, MixedLinear
from loratory.serving.adapters import AdapterSet


@dataclass
class RowsCache:
    """Of all rows, and of each mixture: what its gate reads of its own rows."""

    rows: Cache
    gates: dict[str, PairCache]


class ScatteredWeights:
    """A mixture's weights of its own rows, 0 at all others.

    Args:
        own: of its rows alone. rows: which of the batch these are.
    """

    def __init__(self, own: LayerWeights, rows: torch.Tensor):
        self.own, self.rows = own, rows

    def __call__(self, layer: MixedLinear, x: torch.Tensor) -> torch.Tensor:
        weights = self.own(layer, x[self.rows])
        scattered = weights.new_zeros(len(x), *weights.shape[1:])
        scattered[self.rows] = weights
        return scattered

    def recompute_copy(self) -> LayerWeights:
        return ScatteredWeights(self.own.recompute_copy(), self.rows)


class MixtureRows(nn.Module):
    """A causal base whose rows belong to adapters, mixtures or nobody; called like the Hugging Face model.

    Args:
        adapters: on the base. mixtures: {name: mixture of the same base, whose experts have been taken off again}.

    Raises:
        InputError: a mixture must know more than its rows, or the base is no decoder.
    """

    wants: tuple[str, ...] = Mixture.wants

    def __init__(self, adapters: AdapterSet, mixtures: Mapping[str, Mixture]):
        super().__init__()
        self.model, self.adapters, self.mixtures = adapters.model, adapters, mixtures
        self.rows: dict[str, torch.Tensor] = {}
        self.inside: dict[str, nn.Module] = {}
        if self.config.is_encoder_decoder:
            raise InputError("mixtures", "rows of mixtures are of a decoder alone", self.config.model_type)
        for name, mixture in mixtures.items():
            if mixture.mixer.needs_domain or mixture.mixer.needs_whole_batch or any(mixture.heads):
                what = "the mixture depends on more than its rows, or has heads of its own"
                raise InputError(f"mixtures: {name}", what, type(mixture.mixer).__module__, fix="let it answer alone")
        for mixture in mixtures.values():
            for name, layer in mixture.layers.items():
                self.inside.setdefault(name, self.model.get_submodule(name))
                layer.base = cast(Linear, self.model.get_submodule(name))
                self.model.set_submodule(name, layer)

    @property
    def config(self) -> PretrainedConfig:
        return self.model.config

    def new_cache(self) -> RowsCache:
        return RowsCache(empty_cache(self.model), {name: one.new_cache() for name, one in self.mixtures.items()})

    @contextmanager
    def use_rows(self, names: Sequence[str | None]) -> Iterator[None]:
        """Inside, row i of a batch is of the adapter or the mixture `names[i]`, or of the bare base where None."""
        places = {name: [row for row, own in enumerate(names) if own == name] for name in self.mixtures}
        before, device = self.rows, self.model.device
        self.rows = {name: torch.tensor(rows, device=device) for name, rows in places.items() if rows}
        try:
            with self.adapters.use_rows([None if name in self.mixtures else name for name in names]):
                yield
        finally:
            self.rows = before

    def forward(self, past_key_values: RowsCache | None = None, **inputs: Any) -> Any:
        """Args:
        inputs: of the model, and those that a mixture `wants`; tensors `[batch, …]`.

        Returns:
            The model's output.
        """
        gates = past_key_values.gates if past_key_values is not None else {}
        if past_key_values is not None:
            inputs["past_key_values"] = past_key_values.rows
        with ExitStack() as stack:
            for mixture in self.mixtures.values():
                stack.enter_context(mixture.context.use_weights(None))
            weights = {name: self.weigh_rows(name, inputs, gates.get(name)) for name in self.rows}
            for name, own in weights.items():
                stack.enter_context(self.mixtures[name].context.use_weights(own))
            return self.model(**{name: value for name, value in inputs.items() if name not in self.wants})

    def weigh_rows(self, name: str, inputs: Mapping[str, Any], cache: PairCache | None) -> LayerWeights:
        """A mixture's weights of its own rows."""
        mixture, rows = self.mixtures[name], self.rows[name]
        own = {key: value[rows] for key, value in inputs.items() if isinstance(value, torch.Tensor)}
        given = {key: own.pop(key, None) for key in self.wants}
        seen = GateInput(is_audio=given["is_audio"], context=given["context"])
        with self.adapters.use_rows([None] * len(rows)):
            weights = mixture.compute_weights(own, seen, cache, given["prompt"], given["hidden"])
        if cache is not None:
            cache.calls += 1
        return ScatteredWeights(mixture.layer_weights(weights, seen), rows)

    def remove(self) -> None:
        """Takes the mixtures off; the adapters stay."""
        for name, layer in self.inside.items():
            self.model.set_submodule(name, layer)
        self.inside = {}
