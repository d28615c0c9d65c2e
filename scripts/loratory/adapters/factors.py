"""A change that is stored whole as the product of low rank that it is, such as PEFT's `vera` and `loha` make."""

from __future__ import annotations

import torch

from loratory.adapters.core import Conv1D, linear_layers
from loratory.adapters.deltas import Adapter, LowRank

HIGHEST = 512  # rank, of any engine
ROUNDING = 1e-6  # of a weight's norm: what the sum of a change and a float32 weight loses, some times over


@torch.no_grad()
def factor_adapter(adapter: Adapter, model: torch.nn.Module) -> Adapter | None:
    """The adapter with every whole change as B A, or None where one is not of a linear layer, or no such product with
    fewer numbers than it has itself.

    Args:
        model: the bare base.
    """
    layers, deltas = linear_layers(model), dict(adapter.deltas)
    for name, change in adapter.dense.items():
        if not change.any():
            continue
        module = name.removesuffix(".weight")
        if module not in layers or module in deltas:
            return None
        layer = layers[module]
        matrix = change.T if isinstance(layer, Conv1D) else change
        highest = min(HIGHEST, (matrix.numel() - 1) // sum(matrix.shape))
        factors = factor_matrix(matrix, ROUNDING * float(layer.weight.double().norm()), highest)
        if factors is None:
            return None
        deltas[module] = factors
    return Adapter(deltas, heads=adapter.heads, run=adapter.run)


def factor_matrix(matrix: torch.Tensor, tolerance: float, highest: int) -> LowRank | None:
    """`[out, in]` as B A of the lowest rank that leaves at most `tolerance` of its Frobenius norm, or None where that
    rank is above `highest`.

    The columns of Q span those of M Ω for a random Ω (Halko et al. 2011, arXiv:0909.4061), of twice as many columns
    until Q Qᵀ M is M; a whole SVD of each layer of a large base would take a CPU half an hour.
    """
    m, generator, tried = matrix.double(), torch.Generator().manual_seed(0), 8
    while True:
        tried = min(tried, highest)
        q, _ = torch.linalg.qr(m @ torch.randn(m.shape[1], tried, generator=generator, dtype=m.dtype))
        core = q.T @ m
        if float((m - q @ core).norm()) <= tolerance:
            break
        if tried == highest:
            return None
        tried *= 2
    u, s, vt = torch.linalg.svd(core, full_matrices=False)
    tails = s.square().flip(0).cumsum(0).flip(0).sqrt()  # what is lost without this and all smaller ones
    rank = max(int((tails > tolerance).sum()), 1)
    root = s[:rank].sqrt()
    return LowRank((root[:, None] * vt[:rank]).float(), (q @ u[:, :rank] * root).float(), 1.0)
