"""The leading singular directions of a matrix, for methods that start from them."""

import torch

from loratory.errors import InputError


def check_rank(rank: int, weight: torch.Tensor) -> None:
    """For a start that is cut out of a weight `[out, in]`.

    Raises:
        InputError: the weight has fewer rows or columns than the rank.
    """
    most = min(weight.shape)
    if rank > most:
        raise InputError("rank", "the rank exceeds the layer's size", rank, f"at most {most} for this layer")


def leading_singular_vectors(matrix: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The leading (U, Σ, Vᵀ), with signs that do not depend on the solver: U's largest entries are positive."""
    left, values, right = torch.linalg.svd(matrix.float(), full_matrices=False)
    return positive_signs(left[:, :count], values[:count], right[:count])


def approximate_singular_vectors(
    matrix: torch.Tensor, count: int, iterations: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same from a random subspace of `count` directions after so many power iterations (Halko et al. 2011,
    arXiv:0909.4061). `generator` is the only source of random numbers."""
    seed = int(torch.randint(2**62, (), generator=generator))
    with torch.random.fork_rng(devices=[]):  # PyTorch's routine takes no generator
        torch.default_generator.manual_seed(seed)
        left, values, right = torch.svd_lowrank(matrix.float().cpu(), count, iterations)
    return positive_signs(left, values, right.T)


def positive_signs(
    left: torch.Tensor, values: torch.Tensor, right: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(U, Σ, Vᵀ) with each pair of vectors turned so that the largest entry of U's is positive."""
    largest = left.gather(0, left.abs().argmax(0, keepdim=True))
    signs = torch.where(largest < 0, -1.0, 1.0)
    return left * signs, values, right * signs.T
