"""What a trained adapter amounts to, and its exchange with PEFT folders (`adapter_config.json` + safetensors).

Only explicit keys are read and written; whatever this file does not understand is refused by name.
"""

import re
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from loratory.data.files import read_json, whole, write_json
from loratory.errors import InputError

CONFIG, WEIGHTS, RUN = "adapter_config.json", "adapter_model.safetensors", "run.json"
PREFIX = "base_model.model."
REFUSED = ("use_dora", "lora_bias", "use_qalora", "arrow_config", "alora_invocation_tokens", "trainable_token_indices")


@dataclass(frozen=True)
class LowRank:
    """ΔW = scale · B A with A `[rank, in]`, B `[out, rank]`."""

    A: torch.Tensor
    B: torch.Tensor
    scale: float

    @property
    def rank(self) -> int:
        return self.A.shape[0]

    def dense(self) -> torch.Tensor:
        return self.scale * (self.B.float() @ self.A.float())


@dataclass(frozen=True)
class Dense:
    """ΔW as it is, `[out, in]`, for methods whose change has no low rank."""

    matrix: torch.Tensor

    def dense(self) -> torch.Tensor:
        return self.matrix


@dataclass
class Adapter:
    """A stored adapter.

    Attributes:
        deltas: {module name: change of its weight}, valid on the original base.
        heads: {parameter name: tensor} of modules trained whole (a classifier).
        run: what is known of its making (`run.json`); {} for a folder from elsewhere.
    """

    deltas: dict[str, LowRank]
    heads: dict[str, torch.Tensor] = field(default_factory=dict)
    run: dict = field(default_factory=dict)


def save_peft(folder, adapter: Adapter, *, causal: bool, transposed: bool = False) -> None:
    """Writes a folder that `PeftModel.from_pretrained` loads; whole or not at all, same bytes for the same adapter.

    Args:
        causal: the base is a causal language model (PEFT then wraps it as such).
        transposed: the base stores weights as `[in, out]` (GPT-2's Conv1D).
    """
    deltas = dict(sorted(adapter.deltas.items()))
    ranks = [delta.rank for delta in deltas.values()]
    alphas = [delta.scale * delta.rank for delta in deltas.values()]
    rank, alpha = max(set(ranks), key=ranks.count), max(set(alphas), key=alphas.count)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if causal else None,
        "base_model_name_or_path": adapter.run.get("base"),
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {name: d.rank for name, d in deltas.items() if d.rank != rank},
        "alpha_pattern": {name: a for name, a in zip(deltas, alphas) if a != alpha},
        "target_modules": list(deltas),
        "modules_to_save": sorted({name.rpartition(".")[0] for name in adapter.heads}) or None,
        "fan_in_fan_out": transposed,
        "bias": "none",
        "lora_dropout": 0.0,
        "use_rslora": False,
    }
    tensors = {}
    for name, delta in deltas.items():
        tensors[f"{PREFIX}{name}.lora_A.weight"] = stored(delta.A)
        tensors[f"{PREFIX}{name}.lora_B.weight"] = stored(delta.B)
    tensors |= {PREFIX + name: stored(tensor) for name, tensor in adapter.heads.items()}
    with whole(folder) as aside:
        aside.mkdir(parents=True)
        save_file(tensors, aside / WEIGHTS, metadata={"format": "pt"})
        write_json(aside / CONFIG, config)
        write_json(aside / RUN, adapter.run)


def stored(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().contiguous()


def load_peft(folder) -> Adapter:
    """Reads any plain PEFT LoRA folder: ranks and alphas per module, rsLoRA, modules trained whole.

    Raises:
        InputError: the folder is not a LoRA, or uses something this reader would get wrong.
    """
    folder = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise InputError(folder, f"no {name}", expected="a PEFT LoRA folder with safetensors weights")
    config = read_json(folder / CONFIG)
    where = folder / CONFIG
    if config.get("peft_type") != "LORA":
        raise InputError(where, "not a LoRA", config.get("peft_type"), "peft_type LORA")
    for key in REFUSED:
        if config.get(key):
            raise InputError(where, f"`{key}` is not supported", config[key], "a plain LoRA")
    if config.get("bias", "none") != "none":
        raise InputError(where, "trained biases are not supported", config["bias"], "bias: none")
    tensors, deltas, heads = load_file(folder / WEIGHTS), {}, {}
    whole_modules = tuple(config.get("modules_to_save") or ())
    for key in sorted(tensors):
        name = key.removeprefix(PREFIX)
        if name.endswith(".lora_A.weight"):
            module = name.removesuffix(".lora_A.weight")
            other = key.replace(".lora_A.", ".lora_B.")
            if other not in tensors:
                raise InputError(folder / WEIGHTS, "lora_A without its lora_B", module)
            a, b = tensors[key], tensors[other]
            deltas[module] = LowRank(a, b, scale_of(config, module, a.shape[0]))
        elif any(name.startswith(f"{module}.") or f".{module}." in name for module in whole_modules):
            heads[name] = tensors[key]
        elif not name.endswith(".lora_B.weight"):
            raise InputError(folder / WEIGHTS, "a tensor that is neither lora_A, lora_B nor a saved module", name)
    run = read_json(folder / RUN) if (folder / RUN).is_file() else {}
    return Adapter(deltas, heads, run)


def scale_of(config: dict, module: str, rank: int) -> float:
    """PEFT's scale of one module: alpha (by its pattern) over the rank, or over its root with rsLoRA."""
    alpha = config["lora_alpha"]
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = value
            break
    return alpha / (sqrt(rank) if config.get("use_rslora") else rank)
