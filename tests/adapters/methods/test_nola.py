"""NOLA (arXiv:2310.02556)."""

import pytest
import torch
from families import FAMILIES, begin, train
from methods.rows import Row
from torch import nn
from torch.utils.checkpoint import checkpoint

from loratory.adapters import core
from loratory.adapters.methods.nola import Method, draw_bases

ROW = Row({"rank": 3, "bases": 8}, lambda shapes, model: 2 * 8 * len(shapes), rate=5e-2)
SMALL = Method(rank=3, bases=5, alpha=6.0)


def layer_of(method=SMALL, inner: int = 12, out: int = 8, name: str = "a") -> core.AdaptedLinear:
    """An adapted layer whose coefficients are random."""
    torch.manual_seed(0)
    base = nn.Linear(inner, out).requires_grad_(False)
    layer = core.AdaptedLinear(base, method, method.initial_tensors(base.weight, core.generator_for(0, name)))
    for key in layer.adapter:
        nn.init.normal_(layer.adapter[key])
    return layer


def bases(layer) -> tuple[torch.Tensor, torch.Tensor]:
    """The random matrices of A and of B, all at once."""
    seed_a, seed_b = layer.tensors["seeds"].tolist()
    (out, inner), method = layer.weight.shape, layer.method
    return draw_bases(seed_a, method.bases, method.rank, inner, "cpu"), draw_bases(
        seed_b, method.bases, out, method.rank, "cpu"
    )


def dense_output(layer, x, a, b) -> torch.Tensor:
    """y from explicit bases and coefficients, by the paper's equation."""
    basis_a, basis_b = bases(layer)
    factor_a = layer.tensors["A0"] + sum(c * basis for c, basis in zip(a, basis_a))
    factor_b = sum(c * basis for c, basis in zip(b, basis_b))
    return layer.base(x) + layer.method.alpha / layer.method.rank * x @ factor_a.T @ factor_b.T


@pytest.mark.parametrize("keep_bases", [False, True])
def test_output_and_gradients_are_those_of_explicit_bases(keep_bases):
    layer = layer_of(SMALL.model_copy(update={"keep_bases": keep_bases}))
    x = torch.randn(2, 4, 12)
    mine, theirs = x.clone().requires_grad_(True), x.clone().requires_grad_(True)
    coefficients = {key: p.detach().clone().requires_grad_(True) for key, p in layer.adapter.items()}
    expected = dense_output(layer, theirs, coefficients["coefficients_A"], coefficients["coefficients_B"])
    found = layer(mine)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for output in (found, expected):
        output.square().sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-4)
    for key, p in layer.adapter.items():
        torch.testing.assert_close(p.grad, coefficients[key].grad, rtol=1e-5, atol=1e-3)


def test_bases_are_uniform_with_the_spread_that_the_mixture_keeps():
    basis = draw_bases(3, 64, 8, 40, "cpu") * 8  # √64
    assert basis.abs().max() <= 1 and basis.abs().max() > 0.99 and abs(basis.mean()) < 0.02
    assert abs(basis.std() - 3**-0.5) < 0.01


def test_every_factor_of_every_layer_has_its_own_bases_and_the_same_ones_in_every_run():
    seeds = [layer_of(name=name).tensors["seeds"].tolist() for name in ("a", "b")]
    assert len({*seeds[0], *seeds[1]}) == 4
    assert seeds[0] == layer_of(name="a").tensors["seeds"].tolist()


def test_a_checkpoint_has_coefficients_seeds_and_the_first_a_but_no_bases():
    layer = layer_of(SMALL.model_copy(update={"keep_bases": True}))
    layer(torch.randn(1, 12)).sum().backward()
    state = {key: tensor for key, tensor in layer.state_dict().items() if not key.startswith("base.")}
    assert sum(t.numel() * t.element_size() for t in state.values()) == 4 * (5 + 5) + 2 * 8 + 4 * 3 * 12


def test_a_loaded_state_gives_the_bits_of_the_same_factors():
    layer, other = layer_of(), layer_of(name="b")
    other.load_state_dict(layer.state_dict())
    assert torch.equal(layer.weight_delta().A, other.weight_delta().A) and torch.equal(
        layer.weight_delta().B, other.weight_delta().B
    )


@pytest.mark.parametrize("keep_bases", [False, True])
def test_what_is_kept_between_calls_follows_the_seeds(keep_bases):
    method, x = SMALL.model_copy(update={"keep_bases": keep_bases}), torch.randn(3, 12)
    layer, other = layer_of(method), layer_of(method, name="b")
    assert not torch.equal(layer(x), other(x))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), other(x))


def test_bases_are_not_kept_for_backward():
    layer, sizes = layer_of(Method(rank=3, bases=50)), []

    def pack(tensor):
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(torch.randn(1, 12)).sum().backward()
    assert sizes and max(sizes) < 50 * 3 * 8


def test_the_global_random_numbers_are_left_alone():
    layer = layer_of()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    layer(torch.ones(1, 12)).sum().backward()
    assert torch.equal(torch.get_rng_state(), before)


def test_gradient_checkpointing_sees_the_same_bases():
    layer, x = layer_of(), torch.randn(2, 12)
    layer(x).square().sum().backward()
    plain = [p.grad.clone() for p in layer.adapter.values()]
    layer.zero_grad()
    checkpoint(layer, x, use_reentrant=False).square().sum().backward()
    assert all(torch.equal(p.grad, gradient) for p, gradient in zip(layer.adapter.values(), plain))


def test_autocast_does_not_round_the_factors():
    layer = layer_of()
    with torch.autocast("cpu", torch.bfloat16):
        factors = SMALL.mixed_factors(layer.tensors, layer.weight.shape, draw_bases)
    for factor, stored in zip(factors, (layer.weight_delta().A, layer.weight_delta().B)):
        assert factor.dtype == torch.float32 and torch.equal(factor, stored)


def test_the_first_step_moves_b_and_the_second_a():
    session = begin(FAMILIES["llama"](), SMALL)
    for step in range(2):
        session.loss(session.batch(step)).backward()
        for layer in session.layers.values():
            assert layer.adapter["coefficients_B"].grad.abs().max() > 0
            assert (layer.adapter["coefficients_A"].grad.abs().max() > 0) == (step == 1)
            with torch.no_grad():
                layer.adapter["coefficients_B"].sub_(layer.adapter["coefficients_B"].grad)
            layer.zero_grad()


def test_what_is_stored_has_the_trained_coefficients(tmp_path):
    session = train(FAMILIES["llama"](), SMALL, tmp_path, rate=5e-2)
    layer = next(iter(session.layers.values()))
    a, b = layer.adapter["coefficients_A"], layer.adapter["coefficients_B"]
    assert a.abs().min() > 0 and b.abs().min() > 0
    x = torch.randn(2, layer.weight.shape[1])
    with torch.no_grad():
        torch.testing.assert_close(layer.base(x) + x @ layer.weight_delta().to_dense().T, dense_output(layer, x, a, b))
