"""LoRA-XS (arXiv:2405.17604)."""

import pytest
import torch
from families import FAMILIES, begin, train
from methods.rows import Row

from loratory.adapters.methods.lora_xs import Method
from loratory.errors import InputError

ROW = Row({"rank": 4, "alpha": 4.0}, lambda shapes, model: 16 * len(shapes), starts="near", rate=5e-2)


@pytest.fixture(autouse=True)
def same_numbers():
    torch.manual_seed(0)


def weight(out=9, inner=7):
    return torch.randn(out, inner, generator=torch.Generator().manual_seed(0))


def start(rank=3, **options):
    return Method(rank=rank, **options).initial_tensors(weight(), torch.Generator().manual_seed(1))


def best(rank):
    """The nearest matrix of a rank, from the eigenvectors of Wᵀ W."""
    vectors = torch.linalg.eigh(weight().T @ weight()).eigenvectors[:, -rank:]
    return weight() @ vectors @ vectors.T


def test_b_has_orthonormal_columns_and_a_carries_the_singular_values():
    tensors = start()
    squares = torch.linalg.eigvalsh(weight().T @ weight()).flip(0)[:3]
    torch.testing.assert_close(tensors["B"].T @ tensors["B"], torch.eye(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(tensors["A"] @ tensors["A"].T, torch.diag(squares), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_with_the_identity_in_the_middle_the_factors_are_the_best_approximation_of_the_weight(rank):
    tensors = start(rank) | {"N": torch.eye(rank)}
    product = Method(rank=rank, alpha=float(rank)).weight_delta(tensors, weight()).to_dense()
    torch.testing.assert_close(product, best(rank), rtol=1e-4, atol=1e-5)


def test_the_trained_matrix_starts_small_and_random():
    middle = Method(rank=60).initial_tensors(torch.eye(60), torch.Generator().manual_seed(1))["N"]
    assert 0.95e-5 < middle.std() < 1.05e-5 and abs(middle.mean()) < 1e-6


def test_the_gradient_is_that_of_the_weight_between_the_factors():
    tensors, x, g = start(alpha=6.0), torch.randn(4, 7), torch.randn(4, 9)
    tensors["N"].requires_grad_(True)
    Method(rank=3, alpha=6.0).forward(x, tensors, True).backward(g)
    torch.testing.assert_close(tensors["N"].grad, 2.0 * tensors["B"].T @ g.T @ x @ tensors["A"].T)


def test_only_the_middle_matrix_moves_despite_weight_decay(tmp_path):
    started = {name: layer.tensors for name, layer in begin(FAMILIES["llama"](), Method(rank=3)).layers.items()}
    for name, layer in train(FAMILIES["llama"](), Method(rank=3), tmp_path).layers.items():
        assert list(layer.adapter) == ["N"]
        same = {key for key, tensor in layer.tensors.items() if torch.equal(tensor, started[name][key])}
        assert same == {"A", "B"}


def test_a_transposed_layer_is_decomposed_by_its_outputs():
    toy = FAMILIES["gpt2"]()
    name = "transformer.h.0.attn.c_attn"
    stored = toy.model.get_submodule(name).weight  # [in, out]
    tensors = begin(toy, Method(rank=32)).layers[name].tensors
    torch.testing.assert_close(tensors["B"] @ tensors["A"], stored.T, rtol=1e-4, atol=1e-6)


def test_a_rank_beyond_the_weights_size_is_refused():
    with pytest.raises(InputError, match=r"exceeds the layer's size \(8\); expected at most 7"):
        start(rank=8)
