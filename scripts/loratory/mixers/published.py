"""Opening X-LoRA gates that others saved, in the authors' layout and PEFT's, and saving ours in PEFT's.

The authors' package writes `xlora_config.json` and `xlora_classifier.safetensors` (`inner.{i}`, `last`; biases are an
option); PEFT writes `adapter_config.json` (peft_type XLORA) and `adapter_model.safetensors`, whose gate (`layers.{i}`)
0.18 and 0.19 save whole, and 0.20 to 0.21.2 in part or not at all. Both count the activations between linear layers,
and both give a gate's outputs for the adapted layers in the order of the model, where ours are in that of their names.

With `enable_softmax_topk` the two packages differ: PEFT's softmax is over the kept experts of each token, the authors'
over those of all tokens of the batch together. A file is opened with the meaning of the package that wrote it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import save_file

from loratory.adapters.deltas import CONFIG, WEIGHTS, Adapter, cpu_tensor
from loratory.adapters.peft_config import refuse_unknown
from loratory.adapters.reading import read_tensors, require_float
from loratory.bases.checks import check_links, read_object
from loratory.data.files import write_json
from loratory.errors import InputError
from loratory.mixers.checks import check_experts, check_trained_experts
from loratory.mixers.core import Mixture
from loratory.mixers.layers import MixedLinear
from loratory.mixers.methods.xlora import Mixer
from loratory.mixers.routing import keep_largest
from loratory.mixers.store import open_experts
from loratory.mixers.streams import TOKENS
from loratory.problems import read_fields

if TYPE_CHECKING:
    from loratory.bases.core import Base
    from loratory.mixers.contract import GateInput, GateShape

AUTHORS = "xlora_config.json"
LAYOUTS = {AUTHORS: "xlora_classifier.safetensors", CONFIG: WEIGHTS}  # config file: weights file
PEFT_GATE = "base_model.internal_xlora_classifier."
WITHOUT_EFFECT = {
    *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "runtime_config", "base_model_id", "device", "model_type", "stop_token_id"),
}


class SavedGate(BaseModel):
    """A saved X-LoRA config; names are of both packages, and defaults of PEFT."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False)

    xlora_depth: int = Field(1, ge=1)
    xlora_size: int = Field(2048, ge=1)
    xlora_dropout_p: float = Field(0.2, ge=0, lt=1)
    softmax_temperature: float = Field(1.0, gt=0)
    top_k_lora: int | None = Field(None, ge=1)
    enable_softmax: bool = True
    enable_softmax_topk: bool = False
    enable_relu_and_dropout: bool = True
    layerwise_scalings: bool = False
    global_scaling_weight: float = Field(1.0, gt=0)
    scaling_pass_value: float | None = 0.0
    use_trainable_adapters: bool = False
    use_bias: bool | None = None
    hidden_size: int | None = None
    adapters: dict[str, Any] | list[str] | None = None

    @property
    def renormalises(self) -> bool:
        """The kept weights get a softmax of their own, in place of one over all experts."""
        return self.enable_softmax_topk and self.top_k_lora is not None

    def layer_names(self, authors: bool) -> list[str]:
        """The names of the gate's linear layers, first to last."""
        step = 3 if authors or self.xlora_dropout_p > 0 else 2  # linear, ReLU, dropout; PEFT leaves out one of 0
        names = [f"{'inner' if authors else PEFT_GATE + 'layers'}.{step * i}" for i in range(self.xlora_depth)]
        return [*names[:-1], "last"] if authors else names


class BatchSoftmaxMixer(Mixer):
    """The authors' softmax of the kept weights, over all tokens of the batch: each depends on all others."""

    @property
    def needs_whole_batch(self) -> bool:
        return True

    def routing_weights(self, gate: Any, seen: GateInput, sizes: GateShape) -> torch.Tensor:
        assert seen.hidden is not None  # as the mixer reads `hidden`
        return gate(seen.hidden.float()).unflatten(-1, (-1, sizes.experts))

    def select_weights(self, weights: torch.Tensor) -> torch.Tensor:
        assert self.top_k is not None  # as `mixer_from_config` makes it for no other
        kept = keep_largest(weights, self.top_k)
        by_module = kept.masked_fill(kept == 0, -torch.inf).movedim(-2, 0)
        shares = by_module.flatten(1).softmax(-1).nan_to_num(0.0).view_as(by_module)  # NaN: all were 0, and stay so
        return self.scale * shares.movedim(0, -2)


def open_published(folder: Path | str, base: Base, experts: Mapping[str, Path | str]) -> Mixture:
    """Puts a saved X-LoRA on a loaded base (see `bases.core.load_base`).

    Args:
        experts: {name: PEFT folder}, in the order in which the gate knows them. The folders named in the saved config
            are not followed: they are those of the machine that saved it.

    Raises:
        InputError: no such gate is there, it is damaged or incomplete, it does not fit the base and the experts, or it
            uses something that this project would get wrong. The base is left as it was.
    """
    folder = Path(folder)
    check_links(folder)
    where = next((folder / name for name in LAYOUTS if (folder / name).is_file()), None)
    if where is None:
        raise InputError(folder, "no X-LoRA", expected=" or ".join(LAYOUTS))
    config, weights = read_config(where), folder / LAYOUTS[where.name]
    if not weights.is_file():
        raise InputError(folder, f"no {weights.name}", expected="the gate as safetensors")
    opened = open_experts(experts, base.fingerprint)
    check_trained_experts(opened, folder)
    check_experts(base.model, opened, folder)
    check_request(config, base, opened, where)
    layers = gate_layers(config, read_tensors(weights), where.name == AUTHORS, weights)
    check_sizes(config, layers, base, opened, weights)
    mixture = Mixture(base.model, opened, mixer_from_config(config, where.name == AUTHORS), folder)
    fill_gate(mixture, layers)
    return mixture.eval()


def read_config(where: Path) -> SavedGate:
    """Raises:
    InputError: not an X-LoRA, a value of the wrong type, or one that this project would get wrong.
    """
    given = read_object(where)
    if given.get("peft_type", "XLORA") != "XLORA":
        raise InputError(where, "not an X-LoRA", given["peft_type"], "peft_type XLORA")
    refuse_unknown(given, {*SavedGate.model_fields, *WITHOUT_EFFECT}, where)
    config = read_fields(SavedGate, given, where)
    for option, value, supported in (
        ("scaling_pass_value", config.scaling_pass_value, 0.0),
        ("use_trainable_adapters", config.use_trainable_adapters, False),
        ("enable_relu_and_dropout", config.enable_relu_and_dropout or config.xlora_depth == 1, True),
    ):
        if value != supported:
            raise InputError(where, f"`{option}` is not supported", str(given[option]), str(supported))
    if config.enable_softmax == config.renormalises:
        what = "`enable_softmax` and `enable_softmax_topk` together, or neither of them with a `top_k_lora`"
        raise InputError(where, what, config.enable_softmax, "one of them")
    return config


def check_request(config: SavedGate, base: Base, experts: Mapping[str, Adapter], where: Path) -> None:
    """Raises:
    InputError: the config is of another number of experts, keeps more of them than there are, or is of a base of
        another width.
    """
    hidden = base.model.config.hidden_size
    if config.hidden_size not in (None, hidden):
        raise InputError(where, "the gate does not fit: `hidden_size`", config.hidden_size, f"the base's {hidden}")
    if config.adapters is not None and len(config.adapters) != len(experts):
        what = "the gate does not fit: number of `adapters`"
        raise InputError(where, what, len(config.adapters), f"{len(experts)} as given")
    if config.top_k_lora is not None and config.top_k_lora > len(experts):
        raise InputError(where, "the gate does not fit: `top_k_lora`", config.top_k_lora, f"at most {len(experts)}")


def mixer_from_config(config: SavedGate, authors: bool) -> Mixer:
    """Our options from theirs."""
    kind = BatchSoftmaxMixer if authors and config.renormalises else Mixer
    return kind(
        depth=config.xlora_depth,
        width=config.xlora_size,
        dropout=config.xlora_dropout_p,
        temperature=config.softmax_temperature if config.enable_softmax else 1.0,
        layerwise=config.layerwise_scalings,
        top_k=config.top_k_lora,
        renormalise=config.renormalises,
        scale=config.global_scaling_weight,
    )


def gate_layers(
    config: SavedGate, tensors: dict[str, torch.Tensor], authors: bool, where: Path
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The gate's linear layers in their order, as (weight, bias); a bias of zeros where the authors' have none.

    Raises:
        InputError: a layer is missing, or there is one too many.
    """
    tensors = {name: t for name, t in tensors.items() if authors or name.startswith(PEFT_GATE)}
    for name, tensor in tensors.items():
        require_float(where, name, tensor)
    fix = "save it with PEFT 0.18 or 0.19, or save the gate apart"
    if config.xlora_depth > len(tensors):
        saved = f"{len(tensors)} tensors"
        raise InputError(where, "the gate is not whole", saved, f"{config.xlora_depth} layers", fix)
    names = config.layer_names(authors)
    with_bias = config.use_bias is True or not authors or any(name.endswith(".bias") for name in tensors)
    expected = {f"{name}.{part}" for name in names for part in (("weight", "bias") if with_bias else ("weight",))}
    if missing := sorted(expected - tensors.keys()):
        raise InputError(where, "the gate is not whole", missing[0], "all of its layers", fix)
    if unexpected := sorted(tensors.keys() - expected):
        raise InputError(where, "a tensor that the gate of this config has not", unexpected[0], ", ".join(names))
    pairs = [(tensors[f"{name}.weight"].float(), tensors.get(f"{name}.bias")) for name in names]
    return [(weight, weight.new_zeros(weight.shape[:1]) if bias is None else bias.float()) for weight, bias in pairs]


def check_sizes(
    config: SavedGate,
    layers: list[tuple[torch.Tensor, torch.Tensor]],
    base: Base,
    experts: Mapping[str, Adapter],
    where: Path,
) -> None:
    """Raises:
    InputError: a layer has other sizes than the config, the base and the experts ask for.
    """
    modules = {name for adapter in experts.values() for name in adapter.deltas}
    out = len(experts) * (len(modules) if config.layerwise_scalings else 1)
    inner = base.model.config.hidden_size
    for place, (weight, bias) in enumerate(layers, 1):
        outer = out if place == len(layers) else config.xlora_size
        if weight.shape != (outer, inner) or bias.shape != (outer,):
            sizes, expected = f"{tuple(weight.shape)} and {tuple(bias.shape)}", f"{(outer, inner)} and {(outer,)}"
            raise InputError(f"{where}: layer {place}", "the gate does not fit", sizes, expected)
        inner = outer


def fill_gate(mixture: Mixture, layers: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Copies the layers into the gate."""
    own = gate_linears(mixture)
    for module, (weight, bias) in zip(own, layers, strict=True):
        if module is own[-1] and cast(Mixer, mixture.mixer).layerwise:
            weight, bias = rows_by_name(weight, mixture), rows_by_name(bias, mixture)
        module.weight.data.copy_(weight)
        module.bias.data.copy_(bias)


def gate_linears(mixture: Mixture) -> list[torch.nn.Linear]:
    """The gate's linear layers, first to last."""
    gate = cast(torch.nn.Sequential, mixture.stream_gate(TOKENS))
    return [module for module in gate if isinstance(module, torch.nn.Linear)]


def layers_in_order(mixture: Mixture) -> list[str]:
    """The adapted layers, in the order of the model."""
    return [name for name, module in mixture.model.named_modules() if isinstance(module, MixedLinear)]


def rows_by_name(rows: torch.Tensor, mixture: Mixture) -> torch.Tensor:
    """Rows for (layer in the model's order, expert) → for (layer in the order of names, expert)."""
    walked = layers_in_order(mixture)
    return rows.unflatten(0, (len(walked), -1))[[walked.index(name) for name in sorted(walked)]].flatten(0, 1)


def save_published(folder: Path, mixture: Mixture, experts: Mapping[str, str], where: Path | str) -> None:
    """Writes a gate as PEFT's X-LoRA reads it, which takes the experts from where its config says.

    Args:
        folder: where it goes; it exists. experts: {name: its folder}, as the config shall call it. where: the folder
            of the mixture, for errors.

    Raises:
        InputError: the mixture is no X-LoRA, or one that PEFT's cannot express.
    """
    mixer, linears = mixture.mixer, gate_linears(mixture) if type(mixture.mixer) is Mixer else []
    if not isinstance(mixer, Mixer) or not linears or mixer.per != "token" or any(mixture.heads):
        what, kind = "PEFT's X-LoRA cannot express this mixture", type(mixture.mixer).__module__.rpartition(".")[2]
        raise InputError(where, what, kind, "mixer `xlora` with `per: token`, and experts of low rank alone")
    top_k = mixer.top_k if mixer.top_k and mixer.top_k < len(mixture.names) else None
    renormalises = mixer.renormalise and top_k is not None
    config = {
        "peft_type": "XLORA",
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "hidden_size": mixture.model.config.hidden_size,
        "adapters": {str(place): experts[name] for place, name in enumerate(mixture.names)},
        "xlora_depth": mixer.depth,
        "xlora_size": mixer.width,
        "xlora_dropout_p": mixer.dropout,
        "softmax_temperature": 1.0 if renormalises else mixer.temperature,
        "top_k_lora": top_k,
        "enable_softmax": not renormalises,
        "enable_softmax_topk": renormalises,
        "layerwise_scalings": mixer.layerwise,
        "global_scaling_weight": mixer.scale,
    }
    tensors = {}
    for name, module in zip(SavedGate.model_validate(config).layer_names(authors=False), linears, strict=True):
        for part, parameter in module.named_parameters():
            rows = cpu_tensor(parameter)
            if module is linears[-1]:
                rows = rows_by_place(rows, mixture) if mixer.layerwise else rows
                rows = rows / mixer.temperature if renormalises else rows  # PEFT's softmax of the kept knows none
            tensors[f"{name}.{part}"] = rows
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    write_json(folder / CONFIG, config)


def rows_by_place(rows: torch.Tensor, mixture: Mixture) -> torch.Tensor:
    """The other way of `rows_by_name`."""
    walked = layers_in_order(mixture)
    order = sorted(walked)
    return rows.unflatten(0, (len(walked), -1))[[order.index(name) for name in walked]].flatten(0, 1)
