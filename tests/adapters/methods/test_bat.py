"""Bat (arXiv:2409.15371v1)."""

import peft
import pytest
import torch
from families import five_steps
from methods.rows import Row
from models import llama
from torch import nn
from transformers.pytorch_utils import Conv1D

from loratory.adapters import core
from loratory.adapters.deltas import Dense
from loratory.adapters.methods.bat import Method
from loratory.errors import InputError

ROW = Row({"rank": 4}, lambda shapes, model: sum(4 * out for out, _ in shapes))
IDS = torch.arange(12).view(2, 6) + 3


def layer_of(base: nn.Module, rank: int) -> core.AdaptedLinear:
    """An adapted layer whose D is random."""
    method = Method(rank=rank)
    tensors = method.initial_tensors(core.weight_of(base), torch.Generator())
    layer = core.AdaptedLinear(base.requires_grad_(False), method, tensors)
    torch.manual_seed(1)
    nn.init.normal_(layer.adapter["D"], std=0.3)
    return layer


def block_by_block(weight, d) -> torch.Tensor:
    """ΔW_ij = W_ij D_i + D_i, written as the paper has it."""
    rank, change = d.shape[-1], torch.zeros_like(weight)
    for i in range(weight.shape[0] // rank):
        for j in range(weight.shape[1] // rank):
            block = slice(i * rank, (i + 1) * rank), slice(j * rank, (j + 1) * rank)
            change[block] = weight[block] @ d[i] + d[i]
    return change


def test_a_fresh_layer_gives_the_bits_of_the_base():
    layer, x = layer_of(nn.Linear(12, 8), 4), torch.randn(3, 12)
    nn.init.zeros_(layer.adapter["D"])
    assert torch.equal(layer(x), layer.base(x))


@pytest.mark.parametrize("base", [nn.Linear(12, 8), nn.Linear(8, 12), Conv1D(8, 12)], ids=["wide", "tall", "conv1d"])
@torch.no_grad()
def test_every_block_changes_by_itself_times_the_d_of_its_rows(base):
    layer, x = layer_of(base, 4), torch.randn(3, core.weight_of(base).shape[1])
    change = block_by_block(layer.weight, layer.adapter["D"])
    torch.testing.assert_close(layer.weight_delta().to_dense(), change)
    torch.testing.assert_close(layer(x), base(x) + x @ change.T)


def test_the_change_is_dense_and_its_rank_exceeds_the_blocks():
    torch.manual_seed(0)
    delta = layer_of(nn.Linear(16, 16), 4).weight_delta()
    assert isinstance(delta, Dense) and torch.linalg.matrix_rank(delta.to_dense()) == 16


@torch.no_grad()
def test_the_original_blocks_come_back_from_the_merged_ones():
    layer = layer_of(nn.Linear(12, 8), 4)
    merged, d = layer.weight + layer.weight_delta().to_dense(), layer.adapter["D"]
    for i in range(2):
        for j in range(3):
            block = slice(4 * i, 4 * i + 4), slice(4 * j, 4 * j + 4)
            original = (merged[block] - d[i]) @ torch.inverse(torch.eye(4) + d[i])
            torch.testing.assert_close(original, layer.weight[block], rtol=0, atol=1e-5)


def test_a_layer_that_the_blocks_do_not_tile_is_refused_with_a_rank_that_would_do():
    model = llama().requires_grad_(False)  # 32 and 48 wide
    with pytest.raises(InputError, match=r"q_proj: rank .*\(12\).* 32 inputs and 32 outputs; fix: rank: 8"):
        core.attach(model, Method(rank=12), 0)
    with pytest.raises(InputError, match="fix: rank: 16"):
        core.attach(llama(), Method(rank=32, target_modules=("down_proj",)), 0)
    assert len(core.attach(llama(), Method(rank=16), 0)) == 14


@torch.no_grad()
def test_it_trains_like_peft_from_the_same_start():
    """Five steps from the same random D."""
    ours = llama().requires_grad_(False)
    wrappers = core.attach(ours, Method(rank=4), 0)
    config = peft.MissConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", init_weights="bat")
    other = peft.get_peft_model(llama(), config)
    for name, wrapper in wrappers.items():
        nn.init.normal_(wrapper.adapter["D"], std=0.02)
        other.base_model.model.get_submodule(name).miss_block["default"].copy_(wrapper.adapter["D"])
    before = ours(IDS).logits
    for model in (ours, other):
        five_steps(model, lambda model: model(input_ids=IDS, labels=IDS).loss, lr=1e-3, weight_decay=0.0)
    torch.testing.assert_close(ours(IDS).logits, other(IDS).logits, rtol=0, atol=1e-5)
    assert (ours(IDS).logits - before).abs().max() > 1e-2
