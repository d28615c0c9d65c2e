"""PiSSA (arXiv:2404.02948); against PEFT in `tests/adapters/test_offset.py`."""

import pytest
import torch
from methods.rows import Row

from loratory.adapters.methods.pissa import Method

ROW = Row({"rank": 3, "alpha": 3.0}, lambda shapes, model: sum(3 * (out + inner) for out, inner in shapes))


def start(weight, seed=0, **options):
    method = Method(rank=3, alpha=6.0, **options)
    tensors = method.initial_tensors(weight, torch.Generator().manual_seed(seed))
    return method.scale * tensors["B"] @ tensors["A"], tensors


def spiked(out=20, inner=14):
    """Three directions stand out, as in a trained weight."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(out, inner, generator=generator)
    return noise + 20 * torch.randn(out, 3, generator=generator) @ torch.randn(3, inner, generator=generator)


def test_the_pair_is_the_best_approximation_and_its_two_factors_weigh_alike():
    weight = spiked()
    product, tensors = start(weight)
    left, values, right = torch.linalg.svd(weight)
    torch.testing.assert_close(product, left[:, :3] * values[:3] @ right[:3], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(tensors["A"] @ tensors["A"].T, (values[:3] / 2.0).diag(), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(tensors["B"].T @ tensors["B"], (values[:3] / 2.0).diag(), rtol=1e-4, atol=1e-3)


def test_the_fast_decomposition_comes_near_the_exact_one_and_nearer_with_iterations():
    weight = torch.randn(40, 30, generator=torch.Generator().manual_seed(2))
    exact = start(weight)[0]
    missed = [float((start(weight, iterations=n)[0] - exact).norm()) for n in (0, 4, 64)]
    assert missed[0] > missed[1] > missed[2] and missed[2] < 0.1 * missed[0]
    torch.testing.assert_close(start(spiked(), iterations=4)[0], start(spiked())[0], rtol=1e-3, atol=1e-2)


def test_the_fast_decomposition_depends_on_the_generator_and_on_no_other_random_numbers():
    weight = torch.randn(40, 30, generator=torch.Generator().manual_seed(2))
    torch.manual_seed(5)
    one, state = start(weight, iterations=0)[0], torch.get_rng_state()
    torch.manual_seed(6)
    assert torch.equal(start(weight, iterations=0)[0], one)
    torch.manual_seed(5)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(start(weight, seed=1, iterations=0)[0], one)


def test_iterations_below_zero_are_refused():
    with pytest.raises(ValueError, match="iterations"):
        Method(iterations=-1)
