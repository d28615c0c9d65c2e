"""A frozen base in parts: of every transformer layer each process holds a share, and gathers the rest when it is due.

PyTorch's FSDP2. Only layers are cut: embeddings and output head stay whole in each process, as do adapters, which are
put on afterwards. So a method, the loop and a checkpoint meet the tensors that they always meet. (accelerate's plugin
for it wants all parameters and the optimizer, casts what it gathers, and refuses processes on a CPU.)
"""

from pathlib import Path

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from loratory.adapters.methods.lisa import transformer_layers
from loratory.bases.core import Base, load_base
from loratory.errors import InputError
from loratory.training.processes import process_count


def load_shared_base(folder: Path | str, device: str) -> Base:
    """As `load_base`, for processes that share a base: it is opened on the CPU, each puts its part on its device."""
    base = load_base(folder, "cpu")
    shard_layers(base.model, device)
    if base.audio is not None:
        base.audio.to(device)
    return base


def shard_layers(model: nn.Module, device: str) -> None:
    """Leaves each process its part of the weights of a frozen model's layers, for good, and all the others.

    Raises:
        InputError: the model has no layers to cut.
    """
    layers = transformer_layers(model)
    if not layers:
        raise InputError(type(model).__name__, "no list of layers to share is found", fix="leave `sharding` out")
    inside = {parameter for layer in layers for parameter in layer.parameters()}
    outside = {parameter for parameter in model.parameters() if parameter not in inside}
    mesh = init_device_mesh(device, (process_count(),))
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh, ignored_params=outside)
    model.to(device)


def held_bytes(parameter: torch.Tensor) -> int:
    """What a parameter takes in this process."""
    own = parameter.to_local() if isinstance(parameter, DTensor) else parameter
    return own.numel() * own.element_size()
