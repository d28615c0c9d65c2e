"""LoRA-SB (arXiv:2411.19557)."""

import pytest
import torch
from families import FAMILIES, begin, train
from methods.rows import Row

from loratory.adapters import core
from loratory.adapters.methods.lora_sb import Method
from loratory.errors import InputError

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


def test_the_start_is_the_best_low_rank_part_of_the_first_signed_step_at_the_first_warm_up_rate(begun):
    session, started, gradients = begun
    rate = 1e-2 / 4  # warm-up is a fifth of 20 steps
    for name, tensors in started.items():
        step = -rate * gradients[name].sign()
        left, values, right = torch.linalg.svd(step)
        best = left[:, :6] @ values[:6].diag() @ right[:6]
        torch.testing.assert_close(product(tensors), best, rtol=1e-3, atol=1e-6)
        assert product(tensors).norm() <= rate * step.numel() ** 0.5
    assert session.recipe.learning_rate_at(0) == rate


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


def test_without_warm_up_the_step_has_the_full_rate():
    toy = FAMILIES["llama"]()
    session = begin(toy, Method(rank=6), steps=4, rate=1e-2)  # a fifth of 4 steps is one
    assert session.recipe.learning_rate_at(0) == 1e-2
    sizes = [layer.tensors["R"].norm() for layer in session.layers.values()]
    assert max(sizes) > 1e-2


def test_a_rank_above_a_layers_is_refused_with_the_largest():
    with pytest.raises(InputError, match=r"q_proj: .*at most 32"):
        begin(FAMILIES["llama"](), Method(rank=33))
