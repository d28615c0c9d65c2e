"""The leading singular directions of a matrix."""

import torch

from loratory.adapters.spectrum import leading_singular_vectors


def test_signs_of_singular_vectors_do_not_depend_on_the_solver():
    g = torch.randn(20, 16, generator=torch.Generator().manual_seed(5))
    left, values, right = leading_singular_vectors(g, 4)
    assert (left.gather(0, left.abs().argmax(0, keepdim=True)) > 0).all()
    again = leading_singular_vectors(-g, 4)  # its left vectors are the same, so all that differs is in the right ones
    torch.testing.assert_close(again[0], left, atol=1e-5, rtol=0)
    torch.testing.assert_close(again[2], -right, atol=1e-5, rtol=0)
    torch.testing.assert_close(left.T @ g, values.diag() @ right, atol=1e-4, rtol=0)
