"""Our X-LoRA against PEFT's, where PEFT can run it: same experts, same gate, equal logits."""

import peft
import pytest
import torch
from models import llama, trained_adapter

from loratory.adapters import deltas
from loratory.adapters.methods.lora import Method
from loratory.mixers.core import Mixture
from loratory.mixers.methods.xlora import Mixer

IDS = torch.arange(2 * 9).view(2, 9) % 40 + 3


VARIANTS = {  # our options beside PEFT's
    "shared": ({"layerwise": False, "temperature": 0.7}, {"layerwise_scalings": False, "softmax_temperature": 0.7}),
    "layerwise": ({"temperature": 0.7}, {"softmax_temperature": 0.7}),
    "top_k": ({"top_k": 2}, {"top_k_lora": 2}),
    "renormalised": (
        {"top_k": 2, "renormalise": True},
        {"top_k_lora": 2, "enable_softmax": False, "enable_softmax_topk": True},
    ),
    "scaled": ({"scale": 1.7}, {"global_scaling_weight": 1.7}),
}


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("depth", [1, 2])
def test_logits_equal_peft(tmp_path, variant, depth):
    experts, folders, (mine, its) = {}, {}, VARIANTS[variant]
    for index, rank in enumerate((2, 4, 3)):
        experts[str(index)] = trained_adapter(llama(), Method(rank=rank, alpha=5.0), index)
        folders[str(index)] = str(tmp_path / str(index))
        deltas.save_adapter(folders[str(index)], experts[str(index)], causal=True)
    config = peft.XLoraConfig(
        task_type="CAUSAL_LM",
        hidden_size=32,
        adapters=folders,
        xlora_depth=depth,
        xlora_size=16,
        **{"layerwise_scalings": True, **its},
    )
    model = llama()
    model.config.use_cache = False
    theirs = peft.get_peft_model(model, config).eval()
    mixer = Mixer(depth=depth, width=16, **mine)
    ours = Mixture(llama(), experts, mixer).eval()
    classifier = theirs.base_model.internal_xlora_classifier
    torch.manual_seed(0)
    for parameter in classifier.parameters():
        parameter.normal_(0, 0.3)
    order = peft_module_order(theirs, ours)
    for own, other in zip(ours.gate.parameters(), classifier.parameters()):
        last = mixer.layerwise and other.shape[0] == len(experts) * len(order)
        own.copy_(other.data.unflatten(0, (-1, len(experts)))[order].flatten(0, 1) if last else other.data)
    torch.testing.assert_close(ours(input_ids=IDS).logits, theirs(input_ids=IDS).logits, rtol=0, atol=1e-5)


def peft_module_order(theirs, ours) -> list[int]:
    """For each of our slots, the place that PEFT gives the same module: it counts in the order of the model."""
    from loratory.mixers.layers import MixedLinear

    walked = [n for n, m in ours.model.named_modules() if isinstance(m, MixedLinear)]
    slots = sorted(walked)
    return [walked.index(name) for name in slots]
