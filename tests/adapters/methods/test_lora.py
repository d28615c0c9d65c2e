"""LoRA (arXiv:2106.09685) and LoRA+ (arXiv:2402.12354)."""

import pytest
import torch
from families import FAMILIES, begin
from methods.rows import Row

from loratory.adapters.methods.lora import Method

ROW = Row({"rank": 3, "alpha": 6.0}, lambda shapes, model: sum(3 * (out + inner) for out, inner in shapes))


def test_b_learns_faster_by_the_ratio_of_lora_plus():
    toy = FAMILIES["llama"]()
    session = begin(toy, Method(rank=2, lr_ratio=16.0))
    groups = session.optimizer({n: p for n, p in toy.model.named_parameters() if p.requires_grad}, None).param_groups
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
