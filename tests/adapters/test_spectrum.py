"""The leading singular directions of a matrix."""

import pytest
import torch

from loratory.adapters.spectrum import LARGE, is_approximated, leading_singular_vectors


def test_signs_of_singular_vectors_do_not_depend_on_the_solver():
    g = torch.randn(20, 16, generator=torch.Generator().manual_seed(5))
    left, values, right = leading_singular_vectors(g, 4)
    assert (left.gather(0, left.abs().argmax(0, keepdim=True)) > 0).all()
    again = leading_singular_vectors(-g, 4)  # its left vectors are the same, so all that differs is in the right ones
    torch.testing.assert_close(again[0], left, atol=1e-5, rtol=0)
    torch.testing.assert_close(again[2], -right, atol=1e-5, rtol=0)
    torch.testing.assert_close(left.T @ g, values.diag() @ right, atol=1e-4, rtol=0)


def with_spectrum(values: torch.Tensor, columns: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(1)
    left, right = (torch.linalg.qr(torch.randn(n, len(values), generator=random)).Q for n in (len(values), columns))
    return left * values @ right.T


@pytest.mark.parametrize("kind", ["noise", "falling", "tall"])
def test_a_large_matrix_is_approximated_as_well_as_by_its_whole_svd(kind):
    random = torch.Generator().manual_seed(0)
    matrix = torch.randn(1100, 1300, generator=random)
    if kind != "noise":
        matrix = with_spectrum(torch.arange(1, 1101) ** -0.5, 1300)
    matrix = matrix.T if kind == "tall" else matrix
    assert is_approximated(matrix, 16)
    left, values, right = leading_singular_vectors(matrix, 16)
    _, exact, _ = torch.linalg.svd(matrix, full_matrices=False)
    torch.testing.assert_close(values, exact[:16], rtol=1e-3 if kind == "noise" else 1e-5, atol=0)
    assert (matrix - left * values @ right).norm() <= exact[16:].norm() * (1 + 1e-5)
    torch.testing.assert_close(left.T @ left, torch.eye(16), rtol=0, atol=1e-4)
    assert all(map(torch.equal, leading_singular_vectors(matrix, 16), (left, values, right)))


def test_small_matrices_and_many_directions_are_decomposed_whole():
    assert not is_approximated(torch.empty(LARGE, 5000, device="meta"), 8)
    assert not is_approximated(torch.empty(2048, 5000, device="meta"), 200)
    assert is_approximated(torch.empty(4096, 11008, device="meta"), 128)
