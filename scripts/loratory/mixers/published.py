"""Opening X-LoRA gates that others saved: the authors' layout, and PEFT's.

The authors' package writes `xlora_config.json` and `xlora_classifier.safetensors` (`inner.{i}`, `last`; biases are an
option); PEFT writes `adapter_config.json` (peft_type XLORA) and `adapter_model.safetensors`, whose gate (`layers.{i}`)
0.18 and 0.19 save whole, and 0.20 to 0.21.2 in part or not at all. Both give a gate's outputs for the adapted layers
in the order of the model, where ours are in the order of their names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors.torch import load_file

from loratory.adapters.deltas import CONFIG, WEIGHTS
from loratory.data.files import read_json
from loratory.errors import InputError
from loratory.mixers.core import Mixture, check_trained_experts
from loratory.mixers.layers import MixedLinear
from loratory.mixers.methods.xlora import Mixer
from loratory.mixers.store import open_experts
from loratory.mixers.streams import TOKENS

if TYPE_CHECKING:
    from loratory.bases.core import Base

LAYOUTS = {  # config file: (weights file, what a gate's tensor is called)
    "xlora_config.json": ("xlora_classifier.safetensors", r"^(?:inner\.(\d+)|last)\.(weight|bias)$"),
    CONFIG: (WEIGHTS, r"internal_xlora_classifier\.layers\.(\d+)\.(weight|bias)$"),
}
SUPPORTED_VALUES = {
    "scaling_pass_value": (0, 0.0),
    "use_trainable_adapters": (False,),
    "enable_relu_and_dropout": (True,),
}


def open_published(folder: Path | str, base: Base, experts: Mapping[str, Path | str]) -> Mixture:
    """Puts a saved X-LoRA on a loaded base (see `bases.core.load_base`).

    Args:
        experts: {name: PEFT folder}, in the order in which the gate knows them. The folders named in the saved config
            are not followed: they are those of the machine that saved it.

    Raises:
        InputError: no such gate is there, it is incomplete, it does not fit the base and the experts, or it uses
            something that this project would get wrong.
    """
    folder = Path(folder)
    config = next((folder / name for name in LAYOUTS if (folder / name).is_file()), None)
    if config is None:
        raise InputError(folder, "no X-LoRA", expected=" or ".join(LAYOUTS))
    given, (weights, pattern) = read_json(config), LAYOUTS[config.name]
    if given.get("peft_type", "XLORA") != "XLORA":
        raise InputError(config, "not an X-LoRA", given["peft_type"], "peft_type XLORA")
    if not (folder / weights).is_file():
        raise InputError(folder, f"no {weights}", expected="the gate as safetensors")
    opened = open_experts(experts, base.fingerprint)
    check_trained_experts(opened, folder)
    mixture = Mixture(base.model, opened, mixer_from_config(given, config), folder)
    try:
        fill_gate(mixture, linear_tensors(load_file(folder / weights), pattern), folder / weights)
    except InputError:
        mixture.remove_experts()
        raise
    return mixture.eval()


def mixer_from_config(given: dict[str, Any], where: Path | str) -> Mixer:
    """Our options from theirs.

    Raises:
        InputError: an option has a value that is not supported.
    """
    for option, allowed in SUPPORTED_VALUES.items():
        if given.get(option, allowed[0]) not in allowed:
            raise InputError(where, f"`{option}` is not supported", given[option], str(allowed[0]))
    top_k, first, again = (given.get(key) for key in ("top_k_lora", "enable_softmax", "enable_softmax_topk"))
    if bool(first) == bool(top_k and again):
        raise InputError(where, "`enable_softmax` and `enable_softmax_topk` together", first, "one of them")
    return Mixer(
        depth=given["xlora_depth"],
        width=given.get("xlora_size", 2048),
        dropout=given.get("xlora_dropout_p", 0.2),
        temperature=given.get("softmax_temperature", 1.0) if first else 1.0,
        layerwise=given.get("layerwise_scalings", False),
        top_k=top_k,
        renormalise=not first,
        scale=given.get("global_scaling_weight", 1.0),
    )


def linear_tensors(tensors: dict[str, torch.Tensor], pattern: str) -> list[dict[str, torch.Tensor]]:
    """The gate's linear layers in their order, each as {weight, bias}; the layer without a number is the last."""
    layers: dict[float, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if found := re.search(pattern, name):
            place = float(found[1]) if found[1] is not None else float("inf")
            layers.setdefault(place, {})[found[2]] = tensor.float()
    return [layers[place] for place in sorted(layers)]


def fill_gate(mixture: Mixture, layers: list[dict[str, torch.Tensor]], where: Path | str) -> None:
    """Copies the layers into the gate.

    Raises:
        InputError: a layer is missing, or has other sizes.
    """
    gate = cast(torch.nn.Sequential, mixture.stream_gate(TOKENS))
    own = [module for module in gate if isinstance(module, torch.nn.Linear)]
    if len(layers) != len(own) or not all("weight" in layer for layer in layers):
        saved, fix = f"{len(layers)} of {len(own)} layers", "save it with PEFT 0.18 or 0.19, or save the gate apart"
        raise InputError(where, "the gate is not whole", saved, "all of its layers", fix)
    for module, layer in zip(own, layers):
        bias = layer.get("bias", torch.zeros(len(layer["weight"])))
        if module is own[-1] and cast(Mixer, mixture.mixer).layerwise:
            layer = {"weight": rows_by_name(layer["weight"], mixture, where)}
            bias = rows_by_name(bias, mixture, where)
        if layer["weight"].shape != module.weight.shape:
            sizes = str(tuple(layer["weight"].shape))
            raise InputError(where, "the gate does not fit", sizes, str(tuple(module.weight.shape)))
        module.weight.data.copy_(layer["weight"])
        module.bias.data.copy_(bias)


def rows_by_name(rows: torch.Tensor, mixture: Mixture, where: Path | str) -> torch.Tensor:
    """Rows for (layer in the model's order, expert) → for (layer in the order of names, expert)."""
    walked = [name for name, module in mixture.model.named_modules() if isinstance(module, MixedLinear)]
    experts = len(mixture.names)
    if len(rows) != len(walked) * experts:
        expected = f"{len(walked)} layers times {experts} experts"
        raise InputError(where, "the gate does not fit", f"{len(rows)} outputs", expected)
    return rows.unflatten(0, (len(walked), experts))[[walked.index(name) for name in sorted(walked)]].flatten(0, 1)
