"""StructuredLoRA (arXiv:2502.14482)."""

import pytest
import torch
from methods.rows import Row

from loratory.adapters.methods import lora
from loratory.adapters.methods.structured_lora import Method

ROW = Row({"rank": 3, "alpha": 6.0}, lambda shapes, model: sum(3 * (out + inner) + 9 for out, inner in shapes))


@pytest.fixture(autouse=True)
def same_numbers():
    torch.manual_seed(0)


def trained(rank=3):
    generator = torch.Generator().manual_seed(0)
    shapes = {"A": (rank, 6), "N": (rank, rank), "B": (5, rank)}
    return {name: torch.randn(shape, generator=generator).double() for name, shape in shapes.items()}


def test_it_starts_with_uniform_a_and_n_and_without_b():
    tensors = Method(rank=64).initial_tensors(torch.zeros(20, 400), torch.Generator().manual_seed(0))
    for name, bound in (("A", 1 / 20), ("N", 1 / 8)):
        assert 0.99 * bound < tensors[name].abs().max() <= bound
        torch.testing.assert_close(tensors[name].std(), torch.tensor(bound / 3**0.5), rtol=0.05, atol=0)
    assert tensors["B"].shape == (20, 64) and not tensors["B"].any()


def test_the_output_is_that_of_the_three_factors_in_turn():
    tensors, x = trained(), torch.randn(2, 6).double()
    expected = torch.stack([2.0 * tensors["B"] @ (tensors["N"] @ (tensors["A"] @ row)) for row in x])
    torch.testing.assert_close(Method(rank=3, alpha=6.0).forward(x, tensors, True), expected)


def test_with_n_the_identity_it_is_lora():
    tensors, x = trained() | {"N": torch.eye(3).double()}, torch.randn(2, 6).double()
    expected = lora.Method(rank=3, alpha=6.0).forward(x, tensors, True)
    torch.testing.assert_close(Method(rank=3, alpha=6.0).forward(x, tensors, True), expected)


def test_all_three_factors_get_their_gradients():
    tensors = {name: tensor.requires_grad_(True) for name, tensor in trained().items()}
    x, g = torch.randn(4, 6).double(), torch.randn(4, 5).double()
    Method(rank=3, alpha=6.0).forward(x, tensors, True).backward(g)
    a, n, b, full = *(tensors[name].detach() for name in "ANB"), g.T @ x
    torch.testing.assert_close(tensors["A"].grad, 2.0 * n.T @ b.T @ full)
    torch.testing.assert_close(tensors["N"].grad, 2.0 * b.T @ full @ a.T)
    torch.testing.assert_close(tensors["B"].grad, 2.0 * full @ a.T @ n.T)


def test_dropout_works_in_training_alone():
    method, tensors, x = Method(rank=3, dropout=0.5), trained(), torch.ones(3, 6).double()
    assert torch.equal(method.forward(x, tensors, False), method.forward(x, tensors, False))
    torch.manual_seed(0)
    assert not torch.equal(method.forward(x, tensors, True), method.forward(x, tensors, False))


def test_it_is_stored_with_its_own_rank():
    delta = Method(rank=3, alpha=6.0).weight_delta(trained(), None)
    assert delta.rank == 3 and torch.equal(delta.A, trained()["A"])
