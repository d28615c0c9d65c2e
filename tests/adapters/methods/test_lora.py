"""LoRA (arXiv:2106.09685) and LoRA+ (arXiv:2402.12354)."""

import peft
import pytest
import torch
from families import FAMILIES, begin
from methods.rows import Row
from peft.optimizers import create_loraplus_optimizer

from loratory.adapters.methods.lora import Method

ROW = Row({"rank": 3, "alpha": 6.0}, lambda shapes, model: sum(3 * (out + inner) for out, inner in shapes))


def test_b_learns_faster_by_the_ratio_of_lora_plus():
    toy = FAMILIES["llama"]()
    session = begin(toy, Method(rank=2, lr_ratio=16.0))
    groups = session.create_optimizer(
        {n: p for n, p in toy.model.named_parameters() if p.requires_grad}, None
    ).param_groups
    assert [(group["ratio"], {p.shape[1] == 2 for p in group["params"]}) for group in groups] == [
        (1.0, {False}),
        (16.0, {True}),
    ]


def test_dropout_works_in_training_alone():
    method, x = Method(rank=2, dropout=0.5), torch.ones(1, 8)
    tensors = {"A": torch.ones(2, 8), "B": torch.ones(4, 2)}
    assert torch.equal(method.forward(x, tensors, False), method.forward(x, tensors, False))
    torch.manual_seed(0)
    assert not torch.equal(method.forward(x, tensors, True), method.forward(x, tensors, False))


def test_a_rank_below_one_is_refused():
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        Method(rank=0)


def test_lora_plus_steps_are_those_of_pefts_optimizer(tmp_path):
    """Same start, same rates, five steps: equal logits (peft.optimizers.create_loraplus_optimizer)."""
    ours = FAMILIES["llama"]()
    session = begin(ours, Method(rank=4, alpha=8.0, lr_ratio=16.0), decay=0.0)
    theirs = FAMILIES["llama"]()
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear")
    wrapped = peft.get_peft_model(theirs.model, config)
    for name, layer in session.layers.items():
        wrapped.base_model.model.get_submodule(name).lora_A["default"].weight.data.copy_(layer.adapter["A"])
    parameters = {n: p for n, p in ours.model.named_parameters() if p.requires_grad}
    mine = session.create_optimizer(parameters, None)
    for group in mine.param_groups:
        group["lr"] = 1e-3 * group["ratio"]
    options = {"optimizer_cls": torch.optim.AdamW, "lr": 1e-3, "loraplus_lr_ratio": 16.0, "weight_decay": 0.0}
    other = create_loraplus_optimizer(wrapped, **options)
    for toy, model, optimizer in ((ours, ours.model, mine), (theirs, wrapped, other)):
        model.train()
        for _ in range(5):
            total, n = toy.loss(model, toy.collate(toy.items))
            (total / n).backward()
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(ours.output(), theirs.output(), rtol=0, atol=1e-5)
