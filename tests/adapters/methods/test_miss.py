"""MiSS (arXiv:2409.15371, v4 and later)."""

import peft
import pytest
import torch
from families import five_steps
from methods.rows import Row
from models import llama
from torch import nn

from loratory.adapters import core
from loratory.adapters.methods.miss import Method
from loratory.errors import InputError

ROW = Row({"rank": 5}, lambda shapes, model: sum(5 * out for out, _ in shapes))
IDS = torch.arange(12).view(2, 6) + 3


def layer_of(method, inner: int, out: int = 8, seed: int = 0) -> core.AdaptedLinear:
    """An adapted layer whose D is random."""
    torch.manual_seed(seed)
    base = nn.Linear(inner, out).requires_grad_(False)
    layer = core.AdaptedLinear(base, method, method.initial_tensors(base.weight, torch.Generator()))
    nn.init.normal_(layer.adapter["D"])
    return layer


def test_a_fresh_layer_gives_the_bits_of_the_base():
    layer, x = layer_of(Method(rank=4), 14), torch.randn(3, 14)
    nn.init.zeros_(layer.adapter["D"])
    assert torch.equal(layer(x), layer.base(x))


@pytest.mark.parametrize("inner", [12, 14], ids=["whole shards", "ragged tail"])
@torch.no_grad()
def test_it_adds_to_column_j_the_row_j_mod_rank_of_d(inner):
    layer, x = layer_of(Method(rank=4), inner), torch.randn(3, inner)
    change = torch.stack([layer.adapter["D"][j % 4] for j in range(inner)], 1)
    torch.testing.assert_close(layer(x), x @ (layer.weight + change).T + layer.base.bias)
    torch.testing.assert_close(layer.weight_delta().to_dense(), change)


def test_what_is_stored_is_a_lora_with_a_tiled_identity():
    layer = layer_of(Method(rank=4), 10)
    delta = layer.weight_delta()
    assert delta.A.tolist() == [[float(j % 4 == i) for j in range(10)] for i in range(4)]
    assert torch.equal(delta.B, layer.adapter["D"].T) and delta.scale == 1


def test_the_gradient_of_d_is_the_sum_over_tokens_of_the_folded_input_times_the_output_gradient():
    layer, x, gradient = layer_of(Method(rank=4), 10), torch.randn(2, 3, 10), torch.randn(2, 3, 8)
    layer(x).backward(gradient)
    folded = x[..., :4] + x[..., 4:8] + nn.functional.pad(x[..., 8:], (0, 2))
    expected = torch.einsum("bti,bto->io", folded, gradient)
    torch.testing.assert_close(layer.adapter["D"].grad, expected)


@torch.no_grad()
def test_mini_repeats_a_narrow_d_along_the_output():
    layer, x = layer_of(Method(rank=4, mini=2), 10), torch.randn(3, 10)
    d = layer.adapter["D"]
    assert d.shape == (4, 2)
    wide = layer_of(Method(rank=4), 10)
    wide.adapter["D"].copy_(torch.cat([d] * 4, 1))
    torch.testing.assert_close(layer(x), wide(x))
    torch.testing.assert_close(layer.weight_delta().to_dense(), wide.weight_delta().to_dense())


def test_mini_as_wide_as_the_output_is_miss_itself():
    whole, mini = layer_of(Method(rank=4), 10), layer_of(Method(rank=4, mini=8), 10)
    x = torch.randn(3, 10)
    assert mini.adapter["D"].shape == whole.adapter["D"].shape and torch.equal(mini(x), whole(x))


def test_dropout_works_in_training_alone():
    layer, x = layer_of(Method(rank=4, dropout=0.5), 10), torch.ones(1, 10)
    assert torch.equal(layer.eval()(x), layer(x))
    assert not torch.equal(layer.train()(x), layer.eval()(x))


@pytest.mark.parametrize(
    ("options", "message"), [({"rank": 11}, r"rank .*11.*at most 10"), ({"rank": 2, "mini": 3}, "mini .*divisor of 8")]
)
def test_a_shape_that_does_not_fit_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        layer_of(Method(**options), 10)


@pytest.mark.parametrize(
    ("options", "theirs"),
    [({"rank": 6}, {"init_weights": True}), ({"rank": 6, "mini": 4}, {"init_weights": "mini", "mini_r": 4})],
    ids=["miss", "mini"],
)
@torch.no_grad()
def test_it_trains_like_peft_from_the_same_start(options, theirs):
    """Five steps from the same random D, over inputs that the rank divides (48) and does not (32)."""
    ours = llama().requires_grad_(False)
    wrappers = core.attach(ours, Method(**options), 0)
    config = peft.MissConfig(task_type="CAUSAL_LM", r=6, target_modules="all-linear", **theirs)
    other = peft.get_peft_model(llama(), config)
    for name, wrapper in wrappers.items():
        nn.init.normal_(wrapper.adapter["D"], std=0.02)
        other.base_model.model.get_submodule(name).miss_block["default"].copy_(wrapper.adapter["D"])
    before = ours(IDS).logits
    for model in (ours, other):
        five_steps(model, lambda model: model(input_ids=IDS, labels=IDS).loss, lr=1e-3, weight_decay=0.0)
    torch.testing.assert_close(ours(IDS).logits, other(IDS).logits, rtol=0, atol=1e-5)
    assert (ours(IDS).logits - before).abs().max() > 1e-2
