"""LoRA-GGPO (arXiv:2502.14538)."""

from types import SimpleNamespace

import pytest
import torch
from families import FAMILIES, begin, train
from methods.rows import Row
from torch import nn

from loratory.adapters import core
from loratory.adapters.deltas import LowRank
from loratory.adapters.methods import lora
from loratory.adapters.methods.lora_ggpo import Method, noise_function

ROW = Row({"rank": 3, "alpha": 6.0}, lambda shapes, model: sum(3 * (out + inner) for out, inner in shapes))


def layer_of(inner: int = 12, out: int = 8, **options) -> core.AdaptedLinear:
    """An adapted layer with a random B."""
    torch.manual_seed(0)
    method, base = Method(rank=3, alpha=6.0, **options), nn.Linear(inner, out).requires_grad_(False)
    layer = core.AdaptedLinear(base, method, method.initial_tensors(base.weight, torch.Generator().manual_seed(0)))
    nn.init.normal_(layer.adapter["B"])
    return layer


def plain(layer, x) -> torch.Tensor:
    return layer.base(x) + lora.Method(rank=3, alpha=6.0).forward(x, layer.tensors, False)


def noise_of(layer) -> torch.Tensor:
    """ε `[out, in]`, read off the layer by unit vectors."""
    units = torch.eye(layer.weight.shape[1])
    with torch.no_grad():
        return (layer.train()(units) - layer.eval()(units)).T


def test_evaluation_is_plain_lora():
    layer, x = layer_of().eval(), torch.randn(3, 12)
    assert torch.equal(layer(x), plain(layer, x))
    assert isinstance(layer.weight_delta(), LowRank) and torch.equal(layer.weight_delta().B, layer.adapter["B"])


def test_training_without_sigma_is_plain_lora_with_its_gradients():
    layer, x = layer_of(sigma=0.0).train(), torch.randn(3, 12)
    gradients = []
    for output in (layer(x), plain(layer, x)):
        layer.zero_grad()
        output.square().sum().backward()
        gradients.append([p.grad.clone() for p in layer.adapter.values()])
    torch.testing.assert_close(layer(x), plain(layer, x))
    torch.testing.assert_close(*gradients)


def test_training_is_the_gradient_at_the_perturbed_weight():
    layer, x = layer_of(sigma=0.5).train(), torch.randn(2, 4, 12)
    epsilon = noise_of(layer)
    mine, theirs = x.clone().requires_grad_(True), x.clone().requires_grad_(True)
    a, b = (p.detach().clone().requires_grad_(True) for p in (layer.adapter["A"], layer.adapter["B"]))
    found = layer.train()(mine)
    expected = theirs @ (layer.weight + 2.0 * b @ a + epsilon).T + layer.base.bias
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    for output in (found, expected):
        output.square().sum().backward()
    for gradient, reference in ((mine, theirs), (layer.adapter["A"], a), (layer.adapter["B"], b)):
        torch.testing.assert_close(gradient.grad, reference.grad, rtol=1e-3, atol=1e-2)


def test_the_gradient_of_the_input_is_that_of_finite_differences():
    x = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    deviations = torch.tensor([0.1, 1.0, 3.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: noise_function()(x, deviations, 4), (x,))


def test_a_rows_noise_is_normal_with_the_length_of_its_weights_and_gradient():
    layer = layer_of(inner=60, out=3, sigma=0.2, beta=0.7)
    layer.tensors["weight_squares"].copy_(torch.tensor([1.0, 4.0, 0.0]))
    layer.tensors["gradient_squares"].copy_(torch.tensor([0.0, 2.0, 3.0]))
    draws = []
    for seed in range(200):
        layer.tensors["noise_seed"].fill_(seed)
        draws.append(noise_of(layer))
    draws = torch.stack(draws)
    expected = 0.2 * torch.tensor([1.0, 4.0 + 0.7 * 2, 0.7 * 3]).sqrt() / 60**0.5
    torch.testing.assert_close(draws.std((0, 2)), expected, rtol=0.03, atol=0)
    assert (draws.mean((0, 2)).abs() < 5 * expected / (200 * 60) ** 0.5).all()


def test_beta_matters_only_once_there_were_gradients():
    mild, strong = layer_of(beta=0.0), layer_of(beta=100.0)
    assert torch.equal(noise_of(mild), noise_of(strong))
    for layer in (mild, strong):
        layer.tensors["gradient_squares"].fill_(1.0)
    assert (noise_of(strong).norm(dim=1) > noise_of(mild).norm(dim=1)).all()


def test_all_tokens_of_a_step_see_the_same_noise():
    layer = layer_of(sigma=0.5).train()
    outputs = layer(torch.randn(12).expand(2, 3, 12))
    assert torch.equal(outputs, outputs[:1, :1].expand_as(outputs).contiguous())


def test_noise_is_a_function_of_seed_step_and_layer():
    layers = {name: layer_of() for name in "ab"}

    def drawn(seed, step):
        layers["a"].method.before_step(SimpleNamespace(seed=seed, layers=layers), step)
        return tuple(float(noise_of(layer).sum()) for layer in layers.values())

    assert drawn(0, 1) == drawn(0, 1)
    assert len({*drawn(0, 1), *drawn(0, 2), *drawn(1, 1)}) == 6


def test_noise_leaves_the_global_random_numbers_alone():
    layer = layer_of().train()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    layer(torch.ones(1, 12)).sum().backward()
    assert torch.equal(torch.get_rng_state(), before)


def test_the_noise_is_not_kept_for_backward():
    layer, sizes = layer_of(inner=40, out=30).train(), []

    def pack(tensor):
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(torch.randn(1, 40)).sum().backward()
    assert sizes and max(sizes) < 30 * 40


def test_backward_outside_of_autocast_has_the_same_noise():
    layer, x = layer_of(sigma=0.5).train(), torch.randn(3, 12, requires_grad=True)
    layer(x).sum().backward()
    exact, x.grad = x.grad, None
    with torch.autocast("cpu", torch.bfloat16):
        loss = layer(x).float().sum()
    loss.backward()
    torch.testing.assert_close(x.grad, exact, rtol=0.05, atol=0.2)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_norms_are_those_of_the_point_where_the_gradients_were_taken(family):
    toy = FAMILIES[family]()
    session = begin(toy, Method(rank=3, alpha=6.0, beta=0.5), decay=0.0)
    layers = session.layers.values()
    for layer in layers:
        nn.init.normal_(layer.adapter["B"], std=0.1)
    optimizer = session.create_optimizer(core.trainable_parameters(toy.model), session.recipe)
    session.loss(session.batch(0)).backward()
    squares = [cheap_squares(layer) for layer in layers]
    optimizer.step()
    for layer, (weight, gradient) in zip(layers, squares):
        torch.testing.assert_close(layer.tensors["weight_squares"], weight, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(layer.tensors["gradient_squares"], gradient, rtol=1e-3, atol=1e-8)
        assert gradient.max() > 0


@torch.no_grad()
def cheap_squares(layer):
    """Squared row norms of W + s B A and s (B ∇A + ∇B A), without forming either, for s = 2."""
    w, a, b = layer.weight, layer.adapter["A"], layer.adapter["B"]
    merged = w.square().sum(1) + 4 * (b * (w @ a.T)).sum(1) + 4 * ((b @ (a @ a.T)) * b).sum(1)
    left, right = torch.cat([b, b.grad], 1), torch.cat([a.grad, a], 0)
    return merged, 4 * ((left @ (right @ right.T)) * left).sum(1)


def test_training_differs_from_that_of_lora(tmp_path):
    outputs = []
    for number, method in enumerate((Method(rank=3, sigma=0.3), Method(rank=3, sigma=0.0), lora.Method(rank=3))):
        toy = FAMILIES["llama"]()
        train(toy, method, tmp_path / str(number))
        outputs.append(toy.output())
    noisy, quiet, without = outputs
    torch.testing.assert_close(quiet, without)
    assert (noisy - without).abs().max() > 1e-4
