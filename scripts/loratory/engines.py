"""What engines that serve many LoRAs on one base load, as the sources of vLLM 0.32, LoRAX and TGI say.

All three read PEFT's folder, and take neither biases nor modules trained whole. LoRAX, TGI and older vLLMs scale every
layer by `lora_alpha / r` of the whole adapter, whatever PEFT's patterns say. What differs from layer to layer is
therefore brought to one rank and one scale, by rows and columns of zeros and by a factor of B. A layer that it cannot
adapt is refused by vLLM; LoRAX and TGI pass over it and answer as if it were not there, so it is refused here. Both
stack a type of layer over the whole model and drop it where one layer lacks it, so what is missing becomes zeros.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch.nn.functional import pad
from transformers import AutoConfig, PretrainedConfig

from loratory.adapters.deltas import Adapter, LowRank
from loratory.errors import InputError
from loratory.registry import is_spoken

if TYPE_CHECKING:
    from loratory.export import Trained

LAYER = re.compile(r"^(.*?\.)(\d+)(\..*)$")  # of a module's name, with its first number
LLAMA = r"model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
PHI3 = r"model\.layers\.\d+\.(self_attn\.(qkv|o)_proj|mlp\.(gate_up|down)_proj)"
GPT2 = r"transformer\.h\.\d+\.(attn\.c_(attn|proj)|mlp\.c_(fc|proj))"


@dataclass(frozen=True)
class Engine:
    """One engine's limits.

    Attributes:
        ranks: that its kernels come in. vLLM pads an adapter between two of them; LoRAX and TGI pad to a multiple of
            16, and have no kernel for 48, so theirs are padded here.
        layers: pattern of the names of all layers that it adapts; None of an engine that refuses others itself.
        without_lora: types of models that it serves, but no LoRA of.
    """

    ranks: tuple[int, ...]
    layers: str | None = None
    without_lora: frozenset[str] = frozenset()

    @property
    def stacks_layers(self) -> bool:
        """Whether a type of layer must be in every layer of the model."""
        return self.layers is not None

    def rank_of(self, rank: int) -> int:
        """The lowest of its ranks that holds an adapter of this one."""
        return min(each for each in self.ranks if each >= rank)


WITHOUT_LORA = frozenset(
    {"bloom", "dbrx", "falcon", "falcon_mamba", "gpt2", "gptj", "mamba", "mamba2", "stablelm"}
)  # in vLLM
ENGINES: Mapping[str, Engine] = {
    "vllm": Engine((1, 8, 16, 32, 64, 128, 256, 320, 512), without_lora=WITHOUT_LORA),
    "lorax": Engine((8, 16, 32, 64, 128), layers=f"{LLAMA}|{PHI3}|{GPT2}"),
    "tgi": Engine((8, 16, 32, 64, 128), layers=LLAMA),
}


def fit_to_engine(trained: Trained, adapter: Adapter, form: str) -> Adapter:
    """The same low-rank changes as an engine loads them.

    Raises:
        InputError: the engine would not load the adapter, or not as it was trained.
    """
    engine = ENGINES[form]
    check_servable(trained, adapter, form)
    rank = max(delta.rank for delta in adapter.deltas.values())
    if not engine.stacks_layers:
        return replace(adapter, deltas=share_rank(adapter.deltas, rank))
    filled = fill_layers(adapter.deltas, trained.base_folder)
    return replace(adapter, deltas=share_rank(filled, engine.rank_of(rank)))


def check_base(trained: Trained, form: str) -> None:
    """Raises:
    InputError: the engine serves no LoRA of models like the base.
    """
    family, kind = trained.base["family"], open_config(trained.base_folder).model_type
    peft, merged = "export it `--for peft`", "export it `--for peft`, or the whole model `--merged`"
    if family != "causal":
        raise InputError(trained.folder, "its base is no causal language model", family, "causal", merged)
    if spoken := next(filter(is_spoken, trained.adapters), None):
        raise InputError(trained.folder, "what it reads is audio", spoken, "text", peft)
    if kind in ENGINES[form].without_lora:
        raise InputError(trained.folder, f"{form} serves no LoRA of models of this type", kind, fix=merged)


def check_servable(trained: Trained, adapter: Adapter, form: str) -> None:
    """Raises:
    InputError: an engine would not load the low-rank changes, or not as they were trained.
    """
    engine, deltas = ENGINES[form], adapter.deltas
    rank, highest = max(delta.rank for delta in deltas.values()), max(engine.ranks)
    fix = "export it `--for peft`, or the whole model `--merged`"
    for what, layers, expected in (
        ("modules were trained whole", adapter.heads, "low-rank changes alone"),
        ("convolutions were adapted", [name for name in deltas if deltas[name].kernel > 1], "linear layers alone"),
        (f"{form} does not adapt a layer of this name, and would pass over it", unserved_layers(engine, deltas), None),
    ):
        if layers:
            raise InputError(trained.folder, what, next(iter(layers)), expected, fix)
    if rank > highest:
        what, fix = f"the rank is above {form}'s highest", f"{fix}, or train it at a lower rank"
        raise InputError(trained.folder, what, rank, f"at most {highest}", fix)


def unserved_layers(engine: Engine, layers: Iterable[str]) -> list[str]:
    return [name for name in layers if engine.layers and not re.fullmatch(engine.layers, name)]


def open_config(base_folder: Path) -> PretrainedConfig:
    return AutoConfig.from_pretrained(base_folder, trust_remote_code=False, local_files_only=True)


def share_rank(deltas: dict[str, LowRank], rank: int) -> dict[str, LowRank]:
    """The same changes at this rank, which none of them exceeds, and at the scale that most of them have."""
    scales = [delta.scale for delta in deltas.values()]
    scale = max(set(scales), key=scales.count)

    def padded(delta: LowRank) -> LowRank:
        more = rank - delta.rank
        return LowRank(pad(delta.A, (0, 0, 0, more)), pad(delta.B * (delta.scale / scale), (0, more)), scale)

    return {name: padded(delta) for name, delta in deltas.items()}


def fill_layers(deltas: dict[str, LowRank], base_folder: Path) -> dict[str, LowRank]:
    """The changes, and changes by zero of the layers that have none where others of their type have one."""
    layers, filled = range(open_config(base_folder).num_hidden_layers), dict(deltas)
    for name, delta in deltas.items():
        if parts := LAYER.match(name):
            empty = replace(delta, A=delta.A * 0, B=delta.B * 0)
            for place in layers:
                filled.setdefault(f"{parts[1]}{place}{parts[3]}", empty)
    return filled
