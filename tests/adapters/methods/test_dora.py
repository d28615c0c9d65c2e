"""DoRA (arXiv:2402.09353)."""

import peft
import pytest
import torch
from families import FAMILIES, begin, five_steps, train
from methods.rows import Row
from torch import nn

from loratory.adapters import core
from loratory.adapters.methods.dora import Method

ROW = Row({"rank": 3, "alpha": 6.0}, lambda shapes, model: sum(3 * (out + inner) + out for out, inner in shapes))


@pytest.fixture(autouse=True)
def same_numbers():
    torch.manual_seed(0)


def layer(bias=True, **options):
    """An adapted layer 6 → 5 in float64 with a B that looks trained and an m that is not that of W + s B A."""
    method, base = Method(rank=2, alpha=3.0, **options), nn.Linear(6, 5, bias=bias).double().requires_grad_(False)
    adapted = core.AdaptedLinear(
        base, method, method.initial_tensors(base.weight, torch.Generator().manual_seed(1))
    ).double()
    adapted.adapter["B"].data.normal_()
    adapted.adapter["m"].data.mul_(torch.rand(5) + 0.5)
    return adapted


def direction(adapted):
    return adapted.weight + 1.5 * adapted.adapter["B"] @ adapted.adapter["A"]


def test_m_starts_as_the_norm_of_each_row():
    weight = torch.randn(5, 6)
    m = Method(rank=2).initial_tensors(weight, torch.Generator())["m"]
    torch.testing.assert_close(m, torch.stack([row.square().sum().sqrt() for row in weight]))


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
def test_every_row_of_the_adapted_weight_is_as_long_as_m_and_the_bias_stays(bias):
    adapted, x = layer(bias).eval(), torch.randn(3, 6).double()
    v = direction(adapted)
    weight = torch.diag(adapted.adapter["m"]) @ torch.diag(1 / v.norm(dim=1)) @ v
    expected = x @ weight.T + (adapted.base.bias if bias else 0)
    torch.testing.assert_close(adapted(x), expected)
    changed = adapted.weight + adapted.weight_delta().to_dense()
    torch.testing.assert_close(changed.norm(dim=1), adapted.adapter["m"], check_dtype=False)


def test_gradients_take_the_norm_for_a_constant():
    adapted, x, g = layer(), torch.randn(7, 6).double(), torch.randn(7, 5).double()
    adapted(x).backward(g)
    a, b, m = (adapted.adapter[name].detach() for name in ("A", "B", "m"))
    v = direction(adapted).detach()
    norms, full = v.norm(dim=1), g.T @ x  # ∂L/∂(W + …)
    by_row = (m / norms)[:, None] * full
    torch.testing.assert_close(adapted.adapter["A"].grad, 1.5 * b.T @ by_row)
    torch.testing.assert_close(adapted.adapter["B"].grad, 1.5 * by_row @ a.T)
    torch.testing.assert_close(adapted.adapter["m"].grad, (full * v).sum(1) / norms)


def test_a_row_of_zeros_stays_one_and_is_finite():
    base = nn.Linear(6, 5).requires_grad_(False)
    base.weight[2] = 0
    method = Method(rank=2)
    adapted = core.AdaptedLinear(base, method, method.initial_tensors(base.weight, torch.Generator().manual_seed(1)))
    output = adapted(torch.randn(3, 6))
    output.sum().backward()
    assert torch.equal(output[:, 2], base.bias[2].expand(3))
    assert all(p.grad.isfinite().all() for p in adapted.adapter.values())
    assert adapted.weight_delta().to_dense().isfinite().all()


def test_dropout_works_in_training_alone():
    adapted, x = layer(dropout=0.5), torch.ones(3, 6).double()
    assert torch.equal(adapted.eval()(x), adapted(x))
    assert not torch.equal(adapted.train()(x), adapted(x))


def test_magnitudes_move_in_training(tmp_path):
    toy = FAMILIES["gpt2"]()
    started = {name: t["m"].clone() for name, t in tensors(begin(toy, Method(rank=2))).items()}
    core.detach(toy.model)
    ended = tensors(train(toy, Method(rank=2), tmp_path))
    assert all((ended[name]["m"] != m).all() for name, m in started.items())


def tensors(session):
    return {name: adapted.tensors for name, adapted in session.layers.items()}


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_it_trains_like_that_of_peft_from_the_same_start(family, dropout):
    toy, other = FAMILIES[family](), FAMILIES[family]()
    for bare in (toy.model, other.model):
        moved_biases(bare)
    wrappers = core.attach(toy.model, Method(rank=4, alpha=8.0, dropout=dropout), 0)
    config = peft.LoraConfig(
        r=4, lora_alpha=8, lora_dropout=dropout, target_modules="all-linear", task_type="CAUSAL_LM", use_dora=True
    )
    theirs = peft.get_peft_model(other.model, config)
    for name, wrapper in wrappers.items():
        theirs.base_model.model.get_submodule(name).lora_A["default"].weight.copy_(wrapper.adapter["A"])
    before, batch = toy.output(), toy.collate(toy.items)
    for model in (toy.model, theirs):
        torch.manual_seed(5)
        five_steps(model.train(), lambda model: toy.loss(model, batch)[0], lr=1e-2)
    torch.testing.assert_close(toy.output(), other.output(), rtol=0, atol=1e-5)
    assert (toy.output() - before).abs().max() > 1e-2


def moved_biases(model):
    """Biases start at zero, which would hide that they are rescaled."""
    generator = torch.Generator().manual_seed(2)
    for linear in core.linear_layers(model).values():
        if linear.bias is not None:
            linear.bias.copy_(0.1 * torch.randn(linear.bias.shape, generator=generator))
