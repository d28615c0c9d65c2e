"""Three experts, and what PEFT's `add_weighted_adapter` makes of them."""

import peft
import torch
from models import llama, trained_adapter

from loratory.adapters import deltas
from loratory.adapters.methods.lora import Method


def experts() -> dict[str, deltas.Adapter]:
    """Of unequal ranks, scales and targets."""
    model = llama()
    return {
        "a": trained_adapter(model, Method(rank=2, alpha=3.0), 1),
        "b": trained_adapter(model, Method(rank=4, alpha=4.0, target_modules=("q_proj", "down_proj")), 2),
        "c": trained_adapter(model, Method(rank=3, alpha=1.0, target_modules=("v_proj", "up_proj", "q_proj")), 3),
    }


def dense(adapter: deltas.Adapter) -> dict[str, torch.Tensor]:
    return {name: delta.to_dense() for name, delta in adapter.deltas.items()}


def merged_by_peft(folder, given: dict[str, deltas.Adapter], weights, kind: str, **options) -> dict[str, torch.Tensor]:
    """{module: ΔW}."""
    for name, adapter in given.items():
        deltas.save_adapter(folder / name, adapter, causal=True)
    first, *others = given
    model = peft.PeftModel.from_pretrained(llama(), folder / first, adapter_name=first)
    for name in others:
        model.load_adapter(folder / name, name)
    model.add_weighted_adapter(list(given), list(weights), "merged", kind, **options)
    layers = {name: layer for name, layer in model.base_model.model.named_modules() if hasattr(layer, "lora_A")}
    return {name: layer.get_delta_weight("merged").detach() for name, layer in layers.items()}
