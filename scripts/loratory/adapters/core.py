"""Putting adapters on the linear layers of any base, and taking them off again."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import cast
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.tensor import DTensor
from transformers.pytorch_utils import Conv1D

from loratory.adapters.contract import Method, Tensors
from loratory.adapters.deltas import Adapter, Dense, InputDependent, LowRank
from loratory.adapters.masters import drop_masters, keep_masters, master_copies
from loratory.bases.precision import computing_dtype, is_packed, unpacked_weight
from loratory.errors import InputError
from loratory.registry import unknown_name_error

LINEAR = (nn.Linear, Conv1D)
Linear = nn.Linear | Conv1D
GROUPS = {  # names for parts that bases call otherwise
    "cross_attention": ("encoder_attn", "crossattention"),
    "conv": ("conv1", "conv2"),
}


class WindowedConv(nn.Module):
    """A convolution over time as what it is to an adapter: a linear layer `[out, in · kernel]` of its windows."""

    def __init__(self, conv: nn.Conv1d):
        super().__init__()
        self.conv = conv
        self.weight = conv.weight.flatten(1)  # a view: the same numbers

    @property
    def bias(self) -> torch.Tensor | None:
        return self.conv.bias

    def windows(self, x: torch.Tensor) -> torch.Tensor:
        """`[batch, in, length]` → `[batch, new length, in · kernel]`."""
        (kernel,), (stride,), (padding,) = self.conv.kernel_size, self.conv.stride, cast(tuple, self.conv.padding)
        return F.pad(x, (padding, padding)).unfold(-1, kernel, stride).transpose(1, 2).flatten(2)

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        return F.linear(windows, self.weight, self.bias)


class AdaptedLinear(nn.Module):
    """A frozen linear layer and what a method does with it; by default y = base(x) + method(x)."""

    def __init__(self, base: Linear | WindowedConv, method: Method, tensors: Tensors):
        super().__init__()
        self.base, self.method = base, method
        self.adapter = nn.ParameterDict()
        for key, tensor in tensors.items():
            placed = tensor.to(base.weight.device)
            if key in method.fixed:
                self.register_buffer(f"fixed_{key}", placed)
            else:
                self.adapter[key] = nn.Parameter(placed)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.method.layer_output(self, x)

    def rows_read(self, x: torch.Tensor) -> torch.Tensor:
        """What the method sees of the layer's input: `[..., in]`."""
        return x

    @property
    def tensors(self) -> Tensors:
        """By the names that the method gave them."""
        return {**self.adapter, **{key.removeprefix("fixed_"): tensor for key, tensor in self._buffers.items()}}

    @property
    def weight(self) -> torch.Tensor:
        """The frozen weight `[out, in]`; a packed one is unpacked at every call."""
        return weight_of(self.base)

    @property
    def shape(self) -> torch.Size:
        """`[out, in]` of the frozen weight."""
        return weight_shape(self.base)

    @property
    def dtype(self) -> torch.dtype:
        """Of the adapter, float32 whatever the base's."""
        return next(iter(self.tensors.values())).dtype

    def weight_delta(self) -> LowRank | Dense | InputDependent:
        tensors = {key: tensor.detach() for key, tensor in self.tensors.items()}
        return self.method.weight_delta(tensors, self.weight.detach().float())


class AdaptedConv(AdaptedLinear):
    """A frozen convolution over time and what a method does with its windows."""

    base: WindowedConv

    def __init__(self, conv: nn.Conv1d, method: Method, tensors: Tensors):
        super().__init__(WindowedConv(conv), method, tensors)
        self.stride = conv.stride  # an encoder asks it for the length of its input

    def rows_read(self, x: torch.Tensor) -> torch.Tensor:
        return self.base.windows(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(self.rows_read(x)).transpose(1, 2)

    def weight_delta(self) -> LowRank | Dense | InputDependent:
        delta = super().weight_delta()
        return replace(delta, kernel=self.base.conv.kernel_size[0]) if isinstance(delta, LowRank) else delta


class ChangedLinear(nn.Module):
    """A frozen linear layer with a stored change beside its weight: y = base(x) + ΔW x."""

    def __init__(self, base: Linear | WindowedConv, delta: LowRank | Dense):
        super().__init__()
        self.base, self.delta = base, delta.to(base.weight.device, computing_dtype(base))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.delta.added_output(x)


class ChangedConv(ChangedLinear):
    """A frozen convolution over time with a stored change of its windows."""

    base: WindowedConv

    def __init__(self, conv: nn.Conv1d, delta: LowRank):
        super().__init__(WindowedConv(conv), delta)
        self.stride = conv.stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(self.base.windows(x)).transpose(1, 2)


def bare_layer(module: AdaptedLinear | ChangedLinear) -> nn.Module:
    """The base's own layer that a module wraps."""
    return module.base.conv if isinstance(module.base, WindowedConv) else module.base


def generator_for(seed: int, name: str) -> torch.Generator:
    """Random numbers that depend on (seed, module name) and not on the order in which modules are made."""
    digest = blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)  # 63 bits: seeds are signed


def weight_of(layer: Linear | nn.Conv1d | WindowedConv) -> torch.Tensor:
    """The weight as `[out, in]`, whichever way the layer stores it; a convolution's as `[out, in · kernel]`.

    One that processes hold in parts is gathered, outside of passes, where they all have to ask for it.
    """
    if is_packed(layer):
        return unpacked_weight(cast(nn.Linear, layer))
    weight = layer.weight.full_tensor() if isinstance(layer.weight, DTensor) else layer.weight
    return weight.T if isinstance(layer, Conv1D) else weight.flatten(1)


def weight_shape(layer: Linear | nn.Conv1d | WindowedConv) -> torch.Size:
    """`[out, in]` of `weight_of`, which unpacks nothing."""
    if is_packed(layer):
        linear = cast(nn.Linear, layer)
        return torch.Size((linear.out_features, linear.in_features))
    return weight_of(layer).shape


class PlainWeights(Mapping[str, torch.Tensor]):
    """{layer: its weight `[out, in]`} in float32 on the CPU, each made when it is asked for: together they may be
    larger than the memory."""

    def __init__(self, layers: Mapping[str, Linear | nn.Conv1d]):
        self.layers = layers

    def __getitem__(self, name: str) -> torch.Tensor:
        return weight_of(self.layers[name]).detach().cpu().float()

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)


def stored_shape(layer: nn.Module) -> torch.Size:
    """Of the weight as the layer stores it, or would if it were not packed."""
    return weight_shape(cast(Linear, layer)) if is_packed(layer) else cast(torch.Tensor, layer.weight).shape


def linear_layers(model: nn.Module, heads: tuple[str, ...] = ()) -> dict[str, Linear]:
    """{name: layer} of every linear layer that may be adapted: all but the output embeddings and the heads."""
    output_embeddings = getattr(model, "get_output_embeddings", None)
    head = output_embeddings() if output_embeddings else None
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LINEAR) and module is not head and not is_inside(name, heads)
    }


def adaptable_layers(model: nn.Module, heads: tuple[str, ...] = ()) -> dict[str, Linear | nn.Conv1d]:
    """{name: layer} of `linear_layers`, and of convolutions over time, which are adapted where they are named."""
    convs = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv1d) and is_plain(m)}
    return {**linear_layers(model, heads), **{name: m for name, m in convs.items() if not is_inside(name, heads)}}


def is_plain(conv: nn.Conv1d) -> bool:
    """Whether a convolution is a linear layer of windows."""
    plain = conv.groups == 1 and conv.dilation == (1,) and conv.padding_mode == "zeros"
    return plain and not isinstance(conv.padding, str)


def target_layers(
    model: nn.Module, names: tuple[str, ...] | None, heads: tuple[str, ...] = ()
) -> dict[str, Linear | nn.Conv1d]:
    """The layers to adapt; without names every linear one. Each given name must match: a partial match (Llama's names
    on a model with fused projections) would silently adapt less than the config says.

    Args:
        names: of layers or of modules that hold them (`q_proj`, `encoder`, `decoder.self_attn`, `encoder.conv1`), or
            of GROUPS. Parts of a dotted name stand in the layer's name in this order, others between them.

    Raises:
        InputError: a name matches no layer. A module alone stands for its linear layers.
    """
    linear = linear_layers(model, heads)
    if names is None:
        return {**linear}
    layers, chosen = adaptable_layers(model, heads), set()
    for name in names:
        own = [layer for layer in layers if matches_target(layer, name)]
        own = [layer for layer in own if layer in linear or is_named_last(layer, name)]
        if not own:
            known = {part for layer in layers for part in layer.split(".") if not part.isdecimal()}
            raise unknown_name_error(f"{type(model).__name__}: target_modules", "layer", name, known | {*GROUPS})
        chosen |= {*own}
    return {name: layer for name, layer in layers.items() if name in chosen}


def matches_target(layer: str, target: str) -> bool:
    """Whether the parts of a target, or of what it stands for, come in this order in the layer's name."""
    parts = iter(layer.split("."))
    return all(any(part in GROUPS.get(wanted, (wanted,)) for part in parts) for wanted in target.split("."))


def is_named_last(layer: str, target: str) -> bool:
    """Whether a target names the layer itself, and not only a module around it."""
    wanted = target.rpartition(".")[2]
    return layer.rpartition(".")[2] in GROUPS.get(wanted, (wanted,))


def attach(model: nn.Module, method: Method, seed: int, heads: tuple[str, ...] = ()) -> dict[str, AdaptedLinear]:
    """Wraps the target layers in place; returns {module name: wrapper}. `detach` undoes it.

    Adapter tensors are float32 whatever the base's precision. Heads are drawn anew and made trainable, as are those of
    the base's own weights that the method trains, which have masters where they are in half precision.
    """
    layers, wrappers = target_layers(model, method.target_modules, heads), {}
    weights = PlainWeights(layers)
    for name, own in method.layer_methods(weights).items():
        try:
            tensors = own.initial_tensors(weights[name], generator_for(seed, name))
        except InputError as error:
            raise InputError(f"{type(model).__name__}: {name}", error.detail, reason=error.reason) from None
        layer = layers[name]
        wrap = AdaptedConv if isinstance(layer, nn.Conv1d) else AdaptedLinear
        wrappers[name] = wrap(layer, own, tensors)  # type: ignore[arg-type]
        model.set_submodule(name, wrappers[name])
    for name, parameter in head_parameters(model, heads).items():
        fresh = torch.empty(parameter.shape)
        generator = generator_for(seed, name)
        spread = 0.02 if parameter.dim() > 1 else 0.0
        parameter.data.copy_(fresh.normal_(0, spread, generator=generator) if spread else fresh.zero_())
        parameter.requires_grad_(True)
    own_weights = [name for name in method.trained_weights(model) if not is_inside(name, heads)]
    for parameter in keep_originals(model, own_weights).values():
        parameter.requires_grad_(True)
    keep_masters(model, own_weights)
    return wrappers


ORIGINALS: WeakKeyDictionary[nn.Module, dict[str, torch.Tensor]] = WeakKeyDictionary()  # originals of changed weights


def keep_originals(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Parameter]:
    """Remembers parameters as they are, for `detach` to put back; returns them."""
    parameters = dict(model.named_parameters())
    chosen = {name: parameters[name] for name in names}
    kept = ORIGINALS.setdefault(model, {})
    for name, parameter in chosen.items():
        kept.setdefault(name, parameter.detach().clone())
    return chosen


def head_parameters(model: nn.Module, heads: tuple[str, ...]) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if is_inside(name, heads)}


def is_inside(name: str, modules: tuple[str, ...]) -> bool:
    """Whether a module or parameter is one of `modules` or inside one."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """{name: parameter, or its master} of what an optimizer may move, in a fixed order."""
    masters = master_copies(model)
    return {name: masters.get(name, p) for name, p in sorted(model.named_parameters()) if p.requires_grad}


def detach(model: nn.Module) -> None:
    """Puts the bare layers and the original weights back."""
    for name, module in list(model.named_modules()):
        if isinstance(module, AdaptedLinear | ChangedLinear):
            model.set_submodule(name, bare_layer(module))
    parameters = dict(model.named_parameters())
    for name, original in ORIGINALS.pop(model, {}).items():
        parameters[name].data.copy_(original)
    drop_masters(model)


def export(model: nn.Module, heads: tuple[str, ...], run: dict) -> Adapter:
    """The adapter that is on the model now."""
    adapter = Adapter(heads={n: p.detach().clone() for n, p in head_parameters(model, heads).items()}, run=run)
    for name, module in model.named_modules():
        if isinstance(module, AdaptedLinear):
            delta = module.weight_delta()
            if isinstance(delta, Dense):
                layer = bare_layer(module)
                matrix = delta.matrix.T if isinstance(layer, Conv1D) else delta.matrix
                adapter.dense[f"{name}.weight"] = matrix.reshape(stored_shape(layer))
            elif isinstance(delta, InputDependent):
                adapter.own[name] = delta
            elif delta.rank:  # a layer that lost all its rank is as it was
                adapter.deltas[name] = delta
    parameters = dict(model.named_parameters()) | master_copies(model)
    for name, original in ORIGINALS.get(model, {}).items():
        adapter.dense[name] = parameters[name].detach().float() - original.float()
    return adapter


def apply(model: nn.Module, adapter: Adapter, where: Path | str) -> None:
    """Puts a stored adapter on the model in place; `detach` undoes it.

    Low-rank changes stay unmerged; dense ones are added to the weights, unless these are linear layers in half
    precision: a sum with the weight would round a small change away.

    Raises:
        InputError: the adapter does not fit the model (see `check_fit`).
    """
    check_fit(model, adapter, where)
    for name, parameter in keep_originals(model, adapter.heads).items():
        parameter.data.copy_(adapter.heads[name])
    linear, layers = linear_layers(model), adaptable_layers(model)
    half = {f"{name}.weight": name for name, layer in linear.items() if layer.weight.dtype != torch.float32}
    for name, parameter in keep_originals(model, adapter.dense.keys() - half.keys()).items():
        parameter.data.copy_(parameter.float() + adapter.dense[name].to(parameter.device))  # rounded once
    for name in adapter.dense.keys() & half.keys():
        layer, change = linear[half[name]], adapter.dense[name]
        dense = Dense(change.T if isinstance(layer, Conv1D) else change)
        model.set_submodule(half[name], ChangedLinear(layer, dense))
    for name, delta in adapter.deltas.items():
        target = layers[name]
        changed = ChangedConv(target, delta) if isinstance(target, nn.Conv1d) else ChangedLinear(target, delta)
        model.set_submodule(name, changed)
    for name, own in adapter.own.items():
        target = layers[name]
        wrap = AdaptedConv if isinstance(target, nn.Conv1d) else AdaptedLinear
        wrapper = wrap(target, own.method, own.tensors)  # type: ignore[arg-type]
        model.set_submodule(name, wrapper.eval().requires_grad_(False))


def check_fit(model: nn.Module, adapter: Adapter, where: Path | str) -> None:
    """Raises:
    InputError: the adapter names a layer or a weight that the model lacks, has other sizes, or leaves out what its
        config says that it changes.
    """
    layers, parameters = adaptable_layers(model), dict(model.named_parameters())
    for name, tensor in (adapter.heads | adapter.dense).items():
        if name not in parameters:
            raise unknown_name_error(where, "weight of this base", name, parameters)
        layer = layers.get(name.removesuffix(".weight"))
        shape = stored_shape(layer) if layer and is_packed(layer) else parameters[name].shape
        if tensor.shape != shape:
            expected = f"{tuple(shape)} as in this base"
            raise InputError(f"{where}:{name}", "wrong size", str(tuple(tensor.shape)), expected)
    for name, delta in adapter.deltas.items():
        check_shape(where, name, require_layer(layers, name, where), delta)
    for name, own in adapter.own.items():
        check_input_dependent(f"{where}:{name}", require_layer(layers, name, where), own)
    check_untied(model, adapter, where)
    check_complete(layers, parameters, adapter, where)


def check_untied(model: nn.Module, adapter: Adapter, where: Path | str) -> None:
    """Raises:
    InputError: the adapter replaces a weight that the base uses in two places; it was trained in one of them.
    """
    parameters = list(model.named_parameters(remove_duplicate=False))
    for name in adapter.heads:
        shared = [other for other, p in parameters if p is dict(parameters)[name] and other != name]
        if shared:
            what = f"the base ties this weight to {shared[0]}, and the adapter has changed one of the two"
            raise InputError(f"{where}:{name}", what, expected="an adapter of weights that are not tied")


def check_complete(
    layers: dict[str, Linear | nn.Conv1d], parameters: dict[str, nn.Parameter], adapter: Adapter, where: Path | str
) -> None:
    """Raises:
    InputError: the adapter's config names a layer or a weight of the base that is not in its file.
    """
    config = adapter.config
    if config is None:
        return
    missing = [name for name in layers if config.is_target(name) and name not in adapter.deltas]
    missing += [name for name in parameters if config.is_saved(name) and name not in adapter.heads]
    if missing:
        what = f"{len(missing)} of the layers that its config names are not in the adapter"
        raise InputError(where, what, missing[0], "all of them", "fetch the adapter again, or save it anew")


def check_input_dependent(where: str, layer: Linear | nn.Conv1d, own: InputDependent) -> None:
    """Raises:
    InputError: the tensors are not those that the method has on a layer of this size.
    """
    weight = weight_of(layer).detach().cpu().float()
    made = own.method.weight_delta(own.method.initial_tensors(weight, generator_for(0, where)), weight)
    expected = made.tensors if isinstance(made, InputDependent) else {}
    check_tensors(where, "the method's tensors do not fit", own.tensors, expected)


def check_tensors(where: Path | str, what: str, given: Tensors, expected: Tensors) -> None:
    """Raises:
    InputError: names, shapes or types are not those that are expected; the first that is not, is named.
    """
    for name in sorted(given.keys() | expected.keys()):
        found, wanted = (describe_tensor(tensors.get(name)) for tensors in (given, expected))
        if found != wanted:
            raise InputError(f"{where}:{name}", what, found, wanted)


def describe_tensor(tensor: torch.Tensor | None) -> str:
    if tensor is None:
        return "no such tensor"
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def require_layer(layers: dict[str, Linear | nn.Conv1d], name: str, where: Path | str) -> Linear | nn.Conv1d:
    """Raises:
    InputError: the model has no such layer.
    """
    if name not in layers:
        raise unknown_name_error(
            where, "linear layer of this base", name, {layer.rpartition(".")[2] for layer in layers}
        )
    return layers[name]


def check_shape(where: Path | str, name: str, layer: Linear | nn.Conv1d, delta: LowRank) -> None:
    """Raises:
    InputError: the change does not fit the layer.
    """
    out, inner = weight_shape(layer)
    shape = (delta.B.shape[0], delta.A.shape[1])
    kernel = layer.kernel_size[0] if isinstance(layer, nn.Conv1d) else 1
    if delta.kernel != kernel:
        raise InputError(f"{where}:{name}", "wrong kernel", delta.kernel, f"{kernel} as in this base")
    if shape != (out, inner):
        raise InputError(f"{where}:{name}", "wrong size", str(shape), f"{(out, inner)} as in this base")
