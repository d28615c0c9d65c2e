"""LoRA-SB (arXiv:2411.19557)."""

from types import SimpleNamespace

import pytest
import torch
from families import FAMILIES, begin, five_steps, train
from methods.rows import Row

from loratory.adapters import core
from loratory.adapters.methods.lora_sb import Method
from loratory.errors import InputError
from loratory.training.schedule import Training

ROW = Row({"rank": 6, "batches": 3}, lambda shapes, model: 36 * len(shapes), starts="elsewhere")


@pytest.fixture(scope="module")
def begun():
    toy = FAMILIES["llama"]()
    session = begin(toy, Method(rank=6, batches=3), steps=20, rate=1e-2)
    started = {
        name: {k: t.detach().clone() for k, t in layer.tensors.items()} for name, layer in session.layers.items()
    }
    core.detach(toy.model)
    for layer in session.layers.values():
        layer.base.weight.requires_grad_(True)
    sum(session.loss(session.batch(step)) for step in range(3)).backward()
    gradients = {name: layer.base.weight.grad for name, layer in session.layers.items()}
    return session, started, gradients


def product(tensors):
    return tensors["B"] @ tensors["R"] @ tensors["A"]


def test_the_start_is_the_best_low_rank_part_of_a_signed_step_of_the_released_length(begun):
    session, started, gradients = begun
    # A fifth of 20 steps of 4 examples is warm-up, which is counted in mini-batches of 3 examples.
    rate = 1e-2 / (0.2 * 20 * 4 / 3)
    for name, tensors in started.items():
        step = -rate * gradients[name].sign()
        left, values, right = torch.linalg.svd(step)
        best = left[:, :6] @ values[:6].diag() @ right[:6]
        torch.testing.assert_close(product(tensors), best, rtol=1e-3, atol=1e-6)
        assert product(tensors).norm() <= rate * step.numel() ** 0.5
    assert session.count_examples() == 80 and session.method.start_rate(session) == pytest.approx(rate)


def test_the_length_of_the_start_is_that_of_the_published_recipe():
    """Mathematics: 50,000 examples, once, in mini-batches of 3, warm-up 0.02 and rate 1e-4; a step has 32 examples."""
    recipe = Training(steps=1562, warmup=0.02, learning_rate=1e-4)
    session = SimpleNamespace(recipe=recipe, count_examples=lambda: 1562 * 32)
    rate = Method().start_rate(session)
    assert rate == pytest.approx(1e-4 / (0.02 * 50_000 / 3), rel=1e-3)
    assert recipe.learning_rate_at(0) / rate == pytest.approx(32 / 3, rel=0.02)


def fitted_toy():
    """A base that has something to lose."""
    toy = FAMILIES["llama"]()
    five_steps(toy.model.requires_grad_(True), lambda model: toy.loss(model, toy.collate(toy.items))[0], lr=1e-2)
    toy.model.requires_grad_(False)
    return toy


@pytest.mark.parametrize(("rate", "raises"), [(0.008, False), (8.0, True)])
def test_a_start_that_raises_the_loss_is_told_once_and_no_other(rate, raises, capsys):
    toy = fitted_toy()
    before = toy.mean_loss()
    begin(toy, Method(rank=6, batches=3), steps=20, rate=rate)
    assert (toy.mean_loss() > before) == raises
    lines = [line for line in capsys.readouterr().out.splitlines() if "raises the loss" in line]
    assert len(lines) == raises
    assert all("its step is 1.5" in line and "lower `learning_rates`" in line for line in lines)


def test_the_start_goes_downhill(begun):
    _, started, gradients = begun
    assert all((gradients[name] * product(tensors)).sum() < 0 for name, tensors in started.items())


def test_frozen_factors_are_orthonormal_and_the_core_has_the_singular_values(begun):
    _, started, _ = begun
    for tensors in started.values():
        torch.testing.assert_close(tensors["A"] @ tensors["A"].T, torch.eye(6), atol=1e-5, rtol=0)
        torch.testing.assert_close(tensors["B"].T @ tensors["B"], torch.eye(6), atol=1e-5, rtol=0)
        core_values = tensors["R"].diagonal()
        assert torch.equal(tensors["R"], core_values.diag()) and (core_values.diff() <= 0).all()


def test_a_step_on_the_core_is_the_projected_step_on_the_weight(begun):
    _, started, _ = begun
    tensors = {key: t.double() for key, t in next(iter(started.values())).items()}
    x, target = torch.randn(50, 32).double(), torch.randn(50, 32).double()
    tensors["R"].requires_grad_(True)
    whole = product(tensors).detach().requires_grad_(True)
    (Method(rank=6).forward(x, tensors, True) - target).square().mean().backward()
    (x @ whole.T - target).square().mean().backward()
    moved = tensors["R"].detach() - 0.1 * tensors["R"].grad
    change = product(tensors | {"R": moved}) - product(tensors)
    b, a = tensors["B"], tensors["A"]
    torch.testing.assert_close(change.detach(), -0.1 * b @ b.T @ whole.grad @ a.T @ a, rtol=1e-4, atol=1e-8)


def test_only_the_core_is_trained(tmp_path):
    toy = FAMILIES["llama"]()
    begun = {name: layer.tensors for name, layer in begin(toy, Method(rank=6, batches=3)).layers.items()}
    core.detach(toy.model)
    session = train(toy, Method(rank=6, batches=3), tmp_path)
    for name, layer in session.layers.items():
        assert list(layer.adapter) == ["R"]
        assert torch.equal(layer.tensors["A"], begun[name]["A"]) and torch.equal(layer.tensors["B"], begun[name]["B"])
        assert not torch.equal(layer.tensors["R"], begun[name]["R"])


@pytest.mark.parametrize(("steps", "mini_batch"), [(4, 1000), (1, 4)])
def test_a_warm_up_of_less_than_a_mini_batch_leaves_the_full_rate(steps, mini_batch):
    session = begin(FAMILIES["llama"](), Method(rank=6, estimation_batch=mini_batch), steps=steps, rate=1e-2)
    assert session.method.start_rate(session) == 1e-2
    sizes = [layer.tensors["R"].norm() for layer in session.layers.values()]
    assert max(sizes) > 1e-2


def test_a_rank_above_a_layers_is_refused_with_the_largest():
    with pytest.raises(InputError, match=r"q_proj: .*at most 32"):
        begin(FAMILIES["llama"](), Method(rank=33))
