"""Heads and channels of a model, and the smaller model that is left when some of them are cut out.

A part is the attention or the feed-forward network of one layer. Its units go out together: a channel with its row of
every projection into it and its column of the one out of it; a head with its rows of q, k and v and its columns of o,
where queries are grouped a key-value head with all queries that read it. Biases of rows go with them. The residual
stream, embeddings and norms stay.

All parts of a kind keep the same number of units, so that what is left is an ordinary model of its class, with a
`config.json` that any program reads. No layer can be left whole, as LoRAPrune leaves the first and the last ones: such
a config has one number for all of them.

Two kinds of models can be cut: Llama's (Mistral, Qwen, SmolLM, …), by heads and channels, and Whisper, by channels
alone. Its attention is square: transformers takes the width of a head as d_model over the number of heads, so that no
folder can say that there are fewer heads, as wide as before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy, deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import nn

from loratory.adapters import core
from loratory.bases.core import MANIFEST, family_class
from loratory.bases.prepare import note_training
from loratory.data.files import atomic_write, write_json
from loratory.errors import InputError
from loratory.training.continued import merge_adapter

if TYPE_CHECKING:
    from loratory.adapters.deltas import Adapter
    from loratory.bases.core import Base

Kept = Mapping[str, torch.Tensor]  # {part: its units that stay, in rising order}
AnyBase = TypeVar("AnyBase", bound="Base")


@dataclass(frozen=True)
class Part:
    """Attributes:
    name: of its module. units: how many it has.
    rows, columns: {layer: how many rows (columns) of its weight belong to one unit}, unit after unit.
    settings: {key of the model's config: how many of it one unit is}; fixed: {key: what it is, whatever is cut}.
    sizes: numbers of units that the model's class allows.
    """

    name: str
    units: int
    rows: Mapping[str, int]
    columns: Mapping[str, int]
    settings: Mapping[str, int]
    sizes: Sequence[int]
    fixed: Mapping[str, int] = field(default_factory=dict)

    def kept_number(self, share: float) -> int:
        """How many units stay when a share of them is cut: the nearest number that is allowed, the larger of two."""
        wanted = (1 - share) * self.units
        return min(self.sizes, key=lambda size: (abs(size - wanted), -size))

    def unit_sums(self, matrices: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """`[units]`: for each unit the sum over its rows and columns of `{layer: [out, in]}`; layers may lack."""
        rows = [(matrices[layer].sum(1), width) for layer, width in self.rows.items() if layer in matrices]
        columns = [(matrices[layer].sum(0), width) for layer, width in self.columns.items() if layer in matrices]
        return torch.stack([sums.view(self.units, width).sum(1) for sums, width in rows + columns]).sum(0)


def find_parts(model: nn.Module, where: Path | str) -> tuple[Part, ...]:
    """All parts of a model, without an adapter on it.

    Raises:
        InputError: it is of no kind that can be cut.
    """
    config: Any = model.config
    modules = dict(model.named_modules())
    if config.model_type == "whisper":
        return tuple(
            channels_part(name, ("fc1",), "fc2", module.fc1.out_features, f"{side}_ffn_dim")
            for side in ("encoder", "decoder")
            for name, module in modules.items()
            if isinstance(getattr(module, "fc1", None), nn.Linear) and f"{side}.layers." in name
        )
    heads = [part for name, module in modules.items() if (part := heads_part(name, module, config))]
    channels = [
        channels_part(name, ("gate_proj", "up_proj"), "down_proj", config.intermediate_size, "intermediate_size")
        for name, module in modules.items()
        if has_linear(module, "gate_proj", "up_proj", "down_proj")
        and module.gate_proj.out_features == getattr(config, "intermediate_size", None)
    ]
    if not len(heads) == len(channels) == getattr(config, "num_hidden_layers", None):
        expected = (
            "a model of Llama's kind (q_proj, k_proj, v_proj, o_proj; gate_proj, up_proj, down_proj), or Whisper"
        )
        raise InputError(where, "heads and channels cannot be cut out of it", type(model).__name__, expected)
    return (*heads, *channels)


def has_linear(module: nn.Module, *names: str) -> bool:
    return all(isinstance(getattr(module, name, None), nn.Linear) for name in names)


def heads_part(name: str, module: Any, config: Any) -> Part | None:
    """None where the module is no attention, or has parameters that are not a head's own, such as a norm over all."""
    projections = ("q_proj", "k_proj", "v_proj", "o_proj")
    groups = getattr(config, "num_key_value_heads", None)
    if not groups or not has_linear(module, *projections):
        return None
    factor, width = config.num_attention_heads // groups, module.k_proj.out_features // groups
    if module.q_proj.out_features != groups * factor * width:
        return None
    if any(p.numel() != width for key, p in module.named_parameters() if key.split(".")[0] not in projections):
        return None
    divides = [n for n in range(1, groups) if config.hidden_size % (n * factor) == 0]  # some classes refuse others
    return Part(
        name,
        groups,
        {f"{name}.q_proj": factor * width, f"{name}.k_proj": width, f"{name}.v_proj": width},
        {f"{name}.o_proj": factor * width},
        {"num_attention_heads": factor, "num_key_value_heads": 1},
        (*divides, groups),
        {"head_dim": width},  # which is derived from the number of heads where it is not stated
    )


def channels_part(name: str, into: tuple[str, ...], out: str, units: int, setting: str) -> Part:
    rows = {f"{name}.{layer}": 1 for layer in into}
    return Part(name, units, rows, {f"{name}.{out}": 1}, {setting: 1}, range(1, units + 1))


# Which units stay.


def best_units(scores: torch.Tensor, number: int) -> torch.Tensor:
    """The units of the highest scores `[units]`, in rising order; of equal ones the first."""
    return scores.argsort(descending=True, stable=True)[:number].sort().values


def largest_units(model: nn.Module, parts: Sequence[Part], share: float) -> dict[str, torch.Tensor]:
    """The units whose weights have the largest sums of squares."""
    squares = (
        (part, part.unit_sums({name: model.get_parameter(f"{name}.weight").float().square() for name in layers}))
        for part in parts
        for layers in [(*part.rows, *part.columns)]
    )
    return {part.name: best_units(sums, part.kept_number(share)) for part, sums in squares}


def random_units(parts: Sequence[Part], share: float, seed: int) -> dict[str, torch.Tensor]:
    orders = (torch.randperm(part.units, generator=core.generator_for(seed, f"cut {part.name}")) for part in parts)
    return {part.name: order[: part.kept_number(share)].sort().values for part, order in zip(parts, orders)}


def all_units(parts: Sequence[Part]) -> dict[str, torch.Tensor]:
    return {part.name: torch.arange(part.units) for part in parts}


def layer_places(parts: Sequence[Part], kept: Kept, side: Literal["rows", "columns"]) -> dict[str, torch.Tensor]:
    """{layer: rows (columns) of its weight that stay}, of the layers that lose some on this side."""
    return {
        layer: (kept[part.name][:, None] * width + torch.arange(width, device=kept[part.name].device)).flatten()
        for part in parts
        for layer, width in getattr(part, side).items()
    }


# Models without them.


@contextmanager
def mask_units(model: nn.Module, parts: Sequence[Part], masks: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Inside, units count for nothing where `{part: [units]}` is 0: what comes out of them is multiplied by it.

    The masks may change while the model runs; an adapter on the layers is masked too.
    """

    def mask_layer(layer: str, mask: torch.Tensor, width: int) -> Any:
        def mask_inputs(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            return inputs[0] * mask.repeat_interleave(width).to(inputs[0].dtype), *inputs[1:]

        return model.get_submodule(layer).register_forward_pre_hook(mask_inputs)

    handles = [mask_layer(layer, masks[p.name], width) for p in parts for layer, width in p.columns.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def replace_model(base: AnyBase, model: nn.Module) -> AnyBase:
    """The same base around another model."""
    other = copy(base)
    other.model = model  # type: ignore[assignment]
    return other


def slice_base(base: AnyBase, parts: Sequence[Part], kept: Kept) -> AnyBase:
    """A smaller copy: weights, biases and the LoRA that may lie on them hold nothing of the units that are cut."""
    model = deepcopy(base.model)
    rows, columns = (layer_places(parts, kept, side) for side in ("rows", "columns"))
    for name in (*rows, *columns):
        module = model.get_submodule(name)
        if isinstance(module, core.AdaptedLinear):
            slice_parameter(module.adapter, "B", rows.get(name), None)
            slice_parameter(module.adapter, "A", None, columns.get(name))
        slice_linear(bare_layer(module), rows.get(name), columns.get(name))
    for part in parts:
        sizes = {key: size * len(kept[part.name]) for key, size in part.settings.items()}
        for key, size in (sizes | dict(part.fixed)).items():
            setattr(model.config, key, size)
    check_config(model, [*rows, *columns], base.folder)
    return replace_model(base, model)


def check_config(model: nn.Module, names: Iterable[str], where: Path | str) -> None:
    """Raises:
    InputError: the model's class makes layers of other shapes of its config, so that no folder of it could be opened.
    """
    with torch.device("meta"):
        fresh: Any = type(model)(model.config)
    for name in names:
        layers = bare_layer(model.get_submodule(name)), fresh.get_submodule(name)
        shape, expected = (tuple(layer.weight.shape) for layer in layers)
        if shape != expected:
            what = "the model's class takes no such number of heads or channels"
            raise InputError(f"{where}:{name}", what, shape, str(expected))


def bare_layer(module: Any) -> Any:
    return core.bare_layer(module) if isinstance(module, core.AdaptedLinear) else module


def slice_linear(layer: Any, rows: torch.Tensor | None, columns: torch.Tensor | None) -> None:
    slice_parameter(layer, "weight", rows, columns)
    if layer.bias is not None:
        slice_parameter(layer, "bias", rows, None)
    layer.out_features, layer.in_features = layer.weight.shape


def slice_parameter(owner: Any, name: str, rows: torch.Tensor | None, columns: torch.Tensor | None) -> None:
    before: nn.Parameter = owner[name] if isinstance(owner, nn.ParameterDict) else getattr(owner, name)
    after = before.detach()
    after = after if rows is None else after[rows.to(after.device)]
    after = after if columns is None else after[:, columns.to(after.device)]
    after = nn.Parameter(after.contiguous().clone(), requires_grad=before.requires_grad)
    if isinstance(owner, nn.ParameterDict):
        owner[name] = after
    else:
        setattr(owner, name, after)


def zero_weights(model: nn.Module, names: Iterable[str], choose: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Sets weights of these layers to 0 where `choose(weight)` `[out, in]` is false."""
    for name in names:
        weight = model.get_parameter(f"{name}.weight")
        weight.data.mul_(choose(weight.detach()))


def two_of_four(weight: torch.Tensor) -> torch.Tensor:
    """Whether a weight `[out, in]` is one of the two largest of its four neighbours in a row."""
    fours = weight.abs().unflatten(1, (-1, 4))
    return torch.zeros_like(fours, dtype=torch.bool).scatter_(-1, fours.topk(2).indices, True).flatten(1)


def largest_share(weight: torch.Tensor, share: float) -> torch.Tensor:
    """Whether a weight is of this share of the largest ones of its layer."""
    order = weight.abs().flatten().argsort(descending=True, stable=True)
    chosen = torch.zeros_like(order, dtype=torch.bool)
    chosen[order[: round(share * len(order))]] = True
    return chosen.view(weight.shape)


def check_fours(model: nn.Module, names: Iterable[str], where: Path | str) -> None:
    """Raises:
    InputError: the rows of a layer's weight cannot be parted into fours.
    """
    for name in names:
        shape = tuple(model.get_parameter(f"{name}.weight").shape)
        if len(shape) != 2 or shape[1] % 4:
            expected, fix = "a linear layer with a multiple of 4 inputs", "name other `target_modules` of the adapter"
            raise InputError(f"{where}:{name}", "no two of four weights can be kept", shape, expected, fix)


def merge_base(base: AnyBase) -> AnyBase:
    """A copy whose weights hold the adapter that lies on the model, if any."""
    model = deepcopy(base.model)
    adapter = core.export(model, base.heads, {})
    core.detach(model)
    merge_adapter(model, adapter, "merge")
    return replace_model(base, model.requires_grad_(False).eval())


def scatter_adapter(small: Adapter, model: nn.Module, parts: Sequence[Part], kept: Kept) -> Adapter:
    """A LoRA of a cut model as one of the whole model: B's rows and A's columns go back to where they were cut, and
    the rest is 0. ΔW is that of the small one where rows and columns stayed, and 0 elsewhere."""
    rows, columns = (layer_places(parts, kept, side) for side in ("rows", "columns"))
    layers, deltas = core.adaptable_layers(model), {}
    for name, delta in small.deltas.items():
        out, inner = core.weight_of(layers[name]).shape
        b = scatter_rows(delta.B, rows.get(name), out)
        deltas[name] = replace(delta, A=scatter_rows(delta.A.T, columns.get(name), inner).T.contiguous(), B=b)
    return replace(small, deltas=deltas)


def scatter_rows(values: torch.Tensor, places: torch.Tensor | None, size: int) -> torch.Tensor:
    """`[n, …]` → `[size, …]`, 0 but at n places; as it is where no places are given."""
    if places is None:
        return values
    return values.new_zeros(size, *values.shape[1:]).index_copy(0, places.to(values.device), values)


def model_size(model: nn.Module) -> dict[str, float]:
    """Parameters, those of an adapter on it included, and megabytes of what they are held in."""
    parameters = [*model.parameters()]
    size = sum(p.numel() * p.element_size() for p in parameters)
    states = [(p, getattr(p, "quant_state", None)) for p in parameters]  # of packed ones, which hold two in a byte
    return {"parameters": sum((s.shape if s else p.shape).numel() for p, s in states), "MB": size / 1e6}


def save_base(base: Base, folder: Path, **facts: Any) -> None:
    """Writes the folder of a base that was made of a prepared one, whole: weights, config, tokenizer, manifest."""
    with atomic_write(folder) as aside:
        aside.mkdir(parents=True)
        base.model.save_pretrained(aside)
        base.tokenizer.save_pretrained(aside)
        if base.audio is not None:
            base.audio.save(aside / "audio")
        family_class(base.family).complete_folder(aside)
        write_json(aside / MANIFEST, base.manifest)
        note_training(aside, start_sha256=base.fingerprint, **facts)
