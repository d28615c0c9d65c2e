"""Putting adapters on the linear layers of any base, and taking them off again."""

from hashlib import blake2b

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from loratory.adapters.contract import Method
from loratory.adapters.deltas import Adapter, Dense, LowRank
from loratory.errors import InputError
from loratory.registry import unknown

LINEAR = (nn.Linear, Conv1D)


class AdaptedLinear(nn.Module):
    """A frozen linear layer and the method's addition: y = base(x) + method(x)."""

    def __init__(self, base: nn.Module, method: Method, tensors: dict[str, torch.Tensor]):
        super().__init__()
        self.base, self.method = base, method
        self.adapter = nn.ParameterDict(tensors)

    def forward(self, x):
        added = self.method.forward(x.to(self.dtype), self.adapter, self.training)
        return self.base(x) + added.to(x.dtype)

    @property
    def dtype(self):
        return next(iter(self.adapter.values())).dtype


class ChangedLinear(nn.Module):
    """A frozen linear layer with a stored change: y = base(x) + ΔW x."""

    def __init__(self, base: nn.Module, delta: LowRank | Dense):
        super().__init__()
        self.base, self.delta = base, delta

    def forward(self, x):
        delta = self.delta
        if isinstance(delta, Dense):
            return self.base(x) + nn.functional.linear(x, delta.matrix)
        return self.base(x) + nn.functional.linear(nn.functional.linear(x, delta.A), delta.B) * delta.scale


def generator_for(seed: int, name: str) -> torch.Generator:
    """Random numbers that depend on (seed, module name) and not on the order in which modules are made."""
    digest = blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def weight_of(linear: nn.Module) -> torch.Tensor:
    """The weight as `[out, in]`, whichever way the layer stores it."""
    return linear.weight.T if isinstance(linear, Conv1D) else linear.weight


def linear_layers(model: nn.Module, heads: tuple[str, ...] = ()) -> dict[str, nn.Module]:
    """{name: layer} of every linear layer that may be adapted: all but the output embeddings and the heads."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LINEAR) and module is not head and not under(name, heads)
    }


def targets(model: nn.Module, names: tuple[str, ...] | None, heads: tuple[str, ...] = ()) -> dict[str, nn.Module]:
    """The layers to adapt. Each given name must match: a partial match (Llama's names on a model with fused
    projections) would silently adapt less than was asked for.

    Raises:
        InputError: a name matches no linear layer.
    """
    layers = linear_layers(model, heads)
    if names is None:
        return layers
    last = {name.rpartition(".")[2] for name in layers}
    for name in names:
        if name not in last and name not in layers:
            raise unknown(f"{type(model).__name__}: target_modules", "linear layer", name, last)
    return {name: layer for name, layer in layers.items() if name in names or name.rpartition(".")[2] in names}


def attach(model: nn.Module, method: Method, seed: int, heads: tuple[str, ...] = ()) -> dict[str, AdaptedLinear]:
    """Wraps the target layers in place; returns {module name: wrapper}. `detach` undoes it.

    Adapter tensors are float32 whatever the base's precision. Heads are drawn anew and made trainable.
    """
    wrappers = {}
    for name, layer in targets(model, method.target_modules, heads).items():
        tensors = method.start(weight_of(layer).detach().float().cpu(), generator_for(seed, name))
        parameters = {key: nn.Parameter(tensor.to(layer.weight.device)) for key, tensor in tensors.items()}
        wrappers[name] = AdaptedLinear(layer, method, parameters)
        model.set_submodule(name, wrappers[name])
    for name, parameter in head_parameters(model, heads).items():
        fresh = torch.empty(parameter.shape)
        generator = generator_for(seed, name)
        spread = 0.02 if parameter.dim() > 1 else 0.0
        parameter.data.copy_(fresh.normal_(0, spread, generator=generator) if spread else fresh.zero_())
        parameter.requires_grad_(True)
    return wrappers


def head_parameters(model: nn.Module, heads: tuple[str, ...]) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if under(name, heads)}


def under(name: str, modules: tuple[str, ...]) -> bool:
    """Whether a module or parameter is one of `modules` or inside one."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """{name: parameter} of what an optimizer may move, in a fixed order."""
    return {name: p for name, p in sorted(model.named_parameters()) if p.requires_grad}


def detach(model: nn.Module) -> None:
    """Puts the bare layers back."""
    for name, module in list(model.named_modules()):
        if isinstance(module, AdaptedLinear | ChangedLinear):
            model.set_submodule(name, module.base)


def export(model: nn.Module, heads: tuple[str, ...], run: dict) -> Adapter:
    """The adapter that is on the model now."""
    deltas = {
        name: module.method.delta({key: value.detach() for key, value in module.adapter.items()})
        for name, module in model.named_modules()
        if isinstance(module, AdaptedLinear)
    }
    return Adapter(deltas, {n: p.detach().clone() for n, p in head_parameters(model, heads).items()}, run)


def apply(model: nn.Module, adapter: Adapter, where) -> None:
    """Puts a stored adapter on the model in place, unmerged; `detach` undoes it (heads stay).

    Raises:
        InputError: the adapter names a layer that the model lacks, or has other sizes.
    """
    layers = linear_layers(model)
    device = next(model.parameters()).device
    for name, delta in adapter.deltas.items():
        if name not in layers:
            raise unknown(where, "linear layer of this base", name, [name.rpartition(".")[2] for name in layers])
        check_shape(where, name, layers[name], delta)
        dtype = layers[name].weight.dtype
        if isinstance(delta, Dense):
            placed = Dense(delta.matrix.to(device, dtype))
        else:
            placed = LowRank(delta.A.to(device, dtype), delta.B.to(device, dtype), delta.scale)
        model.set_submodule(name, ChangedLinear(layers[name], placed))
    parameters = dict(model.named_parameters())
    for name, tensor in adapter.heads.items():
        if name not in parameters:
            raise unknown(where, "trained head of this base", name, parameters)
        parameters[name].data.copy_(tensor)


def check_shape(where, name: str, layer: nn.Module, delta: LowRank | Dense) -> None:
    """Raises:
    InputError: the change does not fit the layer.
    """
    out, inner = weight_of(layer).shape
    shape = tuple(delta.matrix.shape) if isinstance(delta, Dense) else (delta.B.shape[0], delta.A.shape[1])
    if shape != (out, inner):
        raise InputError(f"{where}:{name}", "wrong size", str(shape), f"{(out, inner)} as in this base")
