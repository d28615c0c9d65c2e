"""rsLoRA (arXiv:2312.03732)."""

import peft
import pytest
import torch
from families import FAMILIES, five_steps
from methods.rows import Row

from loratory.adapters import core
from loratory.adapters.methods import lora
from loratory.adapters.methods.rslora import Method

ROW = Row({"rank": 3, "alpha": 4.0}, lambda shapes, model: sum(3 * (out + inner) for out, inner in shapes))


@pytest.mark.parametrize(("rank", "scale"), [(1, 16.0), (4, 8.0), (64, 2.0)])
def test_the_scale_falls_with_the_root_of_the_rank(rank, scale):
    tensors = {"A": torch.zeros(rank, 3), "B": torch.zeros(5, rank)}
    assert Method(rank=rank, alpha=16.0).weight_delta(tensors, None).scale == scale


def test_it_is_lora_with_its_alpha_multiplied_by_the_root_of_the_rank():
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, 6, generator=generator), torch.randn(5, 6, generator=generator)
    ours, theirs = Method(rank=4, alpha=3.0), lora.Method(rank=4, alpha=6.0)
    tensors = ours.initial_tensors(weight, generator) | {"B": torch.randn(5, 4, generator=generator)}
    assert torch.equal(ours.forward(x, tensors, True), theirs.forward(x, tensors, True))


def test_the_update_keeps_its_size_as_the_rank_grows():
    """With B moved by entries of one size, as by a first step of AdamW; plain LoRA's update shrinks."""
    weight = torch.zeros(64, 64)

    def size(kind, rank):
        generator = torch.Generator().manual_seed(0)
        method = kind(rank=rank, alpha=8.0)
        signs = torch.randn(64, rank, generator=generator).sign()
        return method.weight_delta(method.initial_tensors(weight, generator) | {"B": signs}, weight).to_dense().norm()

    assert 0.9 < size(Method, 64) / size(Method, 4) < 1.1
    assert size(lora.Method, 64) / size(lora.Method, 4) < 0.3


@torch.no_grad()
def test_it_trains_like_that_of_peft_from_the_same_start():
    toy, other = FAMILIES["llama"](), FAMILIES["llama"]()
    wrappers = core.attach(toy.model, Method(rank=4, alpha=8.0), 0)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", use_rslora=True)
    theirs = peft.get_peft_model(other.model, config)
    for name, wrapper in wrappers.items():
        theirs.base_model.model.get_submodule(name).lora_A["default"].weight.copy_(wrapper.adapter["A"])
    before, batch = toy.output(), toy.collate(toy.items)
    for model in (toy.model, theirs):
        five_steps(model, lambda model: toy.loss(model, batch)[0], lr=1e-2)
    torch.testing.assert_close(toy.output(), other.output(), rtol=0, atol=1e-5)
    assert (toy.output() - before).abs().max() > 1e-2
