"""What a base's weights are held in: numbers of 32 or 16 bits, or 8 and 4 bits as bitsandbytes packs them on a GPU.

`int8` is LLM.int8() (Dettmers et al. 2022, arXiv:2208.07339), `nf4` the NormalFloat of QLoRA with its scales quantised
once more (Dettmers et al. 2023, arXiv:2305.14314). Both are of the linear layers inside; embeddings, norms and the
output head stay in bf16, in which products are computed too. The folder keeps the weights as published: they are
packed whenever the base is opened.
"""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from loratory.bases.options import PACKED
from loratory.errors import InputError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.bfloat16, "nf4": torch.bfloat16}  # computed in


def opening_options(folder: Path, precision: str, device: torch.device | str) -> dict[str, Any]:
    """How the library opens a folder's weights: tensor by tensor, each straight to the device in its final form.

    Raises:
        InputError: the weights are to be packed, and there is no CUDA or no bitsandbytes.
    """
    options = {"dtype": DTYPES[precision], "device_map": {"": str(device)}}
    if precision not in PACKED:
        return options
    if torch.device(device).type != "cuda":
        what, fix = f"a base in {precision} needs a GPU with CUDA", "`precision: bf16`, or `device: cuda`"
        raise InputError(folder, what, str(device), "cuda", fix)
    require_packing(folder, f"a base in {precision}")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # at each pass it says that int8 rounds bf16 to fp16
    return options | {"quantization_config": packing(precision)}


def require_packing(where: Path | str, what: str) -> None:
    """Raises:
    InputError: there is no bitsandbytes.
    """
    if find_spec("bitsandbytes") is None:
        raise InputError(where, f"{what} needs bitsandbytes", fix="`pip install 'loratory[cuda]'`")


def packing(precision: str) -> Any:
    from transformers import BitsAndBytesConfig

    if precision == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    nf4 = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": torch.bfloat16}
    return BitsAndBytesConfig(load_in_4bit=True, **nf4)


def pack_layers(model: PreTrainedModel) -> None:
    """Holds the linear layers inside a model in nf4 from here on, as if it had been opened so; on any device."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    form = {"quant_type": "nf4", "compress_statistics": True}
    head = model.get_output_embeddings()
    layers = {name: m for name, m in model.named_modules() if type(m) is nn.Linear and m is not head}
    for name, layer in layers.items():
        sizes = layer.in_features, layer.out_features, layer.bias is not None
        packed = Linear4bit(*sizes, compute_dtype=torch.bfloat16, device="meta", **form)
        packed.weight, packed.bias = Params4bit(layer.weight.data, requires_grad=False, **form), layer.bias
        model.set_submodule(name, packed.to(layer.weight.device))


def is_packed(layer: nn.Module) -> bool:
    """Whether a layer's weight is held in fewer bits than any number of torch's that can be computed with."""
    return isinstance(layer, nn.Linear) and not layer.weight.is_floating_point()


def unpacked_weight(layer: Any) -> torch.Tensor:
    """The numbers `[out, in]` that a packed layer computes with, made anew at every call."""
    from bitsandbytes import functional

    packed = layer.weight
    if state := getattr(packed, "quant_state", None):
        return functional.dequantize_4bit(packed.data, state).to(torch.bfloat16)
    scales = layer.state.SCB if packed.SCB is None else packed.SCB  # where its first pass has moved them
    return functional.int8_vectorwise_dequant(packed.data, scales).to(torch.bfloat16)


def computing_dtype(layer: Any) -> torch.dtype:
    """What a layer computes in, whatever holds its weight."""
    return layer.weight.dtype if layer.weight.is_floating_point() else torch.bfloat16
