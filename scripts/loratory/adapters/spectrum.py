"""The leading singular directions of a matrix, for methods that start from them."""

import torch


def leading_singular_vectors(matrix: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The leading (U, Σ, Vᵀ), with signs that do not depend on the solver: U's largest entries are positive."""
    left, values, right = torch.linalg.svd(matrix.float(), full_matrices=False)
    left, values, right = left[:, :count], values[:count], right[:count]
    largest = left.gather(0, left.abs().argmax(0, keepdim=True))
    signs = torch.where(largest < 0, -1.0, 1.0)
    return left * signs, values, right * signs.T
