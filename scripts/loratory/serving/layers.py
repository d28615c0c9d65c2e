"""Layers whose rows belong to different adapters: y = x Wᵀ for all rows, and s (x Aᵀ) Bᵀ of each row's own adapter.

As in S-LoRA (Sheng et al. 2023, arXiv:2311.03285) nothing is merged. Ranks are padded with zeros, which changes no
sum. On a GPU two kernels read the factors where they lie. In plain PyTorch, which is their measure: where a batch has
few long segments of one adapter each (prompts, sorted), each is a product of its own; else (single tokens) the factors
of each group of rows are gathered and multiplied in one batched product.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

import torch
from torch import nn
from torch.nn.functional import linear

from loratory.adapters.core import Linear, WindowedConv
from loratory.adapters.deltas import LowRank
from loratory.serving.pool import Pages
from loratory.serving.rows import RowContext, RowOwners

TRITON = find_spec("triton") is not None  # comes with PyTorch for CUDA


class RowwiseLayer(nn.Module):
    """A frozen linear layer whose rows have changes of their own.

    Attributes:
        a, b: where A and s Bᵀ of the adapters are. present: whether the adapter at each place changes the layer.
    """

    a: Pages
    b: Pages

    def __init__(self, base: Linear | WindowedConv, context: RowContext, deltas: Sequence[LowRank | None]):
        super().__init__()
        self.base, self.context = base, context
        self.present = [delta is not None for delta in deltas]
        self.rank = max(delta.rank for delta in deltas if delta is not None)
        self.sizes = next((delta.A.shape[1], delta.B.shape[0]) for delta in deltas if delta is not None)

    @property
    def weight(self) -> torch.Tensor:
        return self.base.weight

    @property
    def bias(self) -> torch.Tensor | None:
        return self.base.bias

    def factors(self, places: int | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A `[…, rank, in]` and s Bᵀ `[…, rank, out]` of the adapters at these places."""
        return self.a.read(places), self.b.read(places)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[rows, …, in]` → `[rows, …, out]`."""
        owners, y = self.context.owners_of(len(x)), self.base(x)
        if has_kernel(x):
            return self.add_by_kernel(y, x, owners)
        if owners.has_few_segments:
            for segment in owners.segments:
                if self.present[segment.place]:
                    rows, (a, b) = slice(segment.first, segment.last), self.factors(segment.place)
                    y[rows] += linear(x[rows], a) @ b
            return y
        a, b = self.factors(owners.groups)
        inner = torch.bmm(x.reshape(len(a), -1, x.shape[-1]), a.transpose(1, 2))
        return torch.baddbmm(y.reshape(len(b), -1, y.shape[-1]), inner, b).view(y.shape)

    def add_by_kernel(self, y: torch.Tensor, x: torch.Tensor, owners: RowOwners) -> torch.Tensor:
        from loratory.serving.kernels import add_changes

        flat, shape = x.reshape(-1, x.shape[-1]).contiguous(), y.shape
        tiles = owners.tiles(len(flat) // len(owners))
        return add_changes(y.reshape(-1, shape[-1]).contiguous(), flat, tiles, self.a, self.b).view(shape)


def has_kernel(x: torch.Tensor) -> bool:
    """Whether rows of these are computed by `kernels`: on a GPU, where Triton is installed."""
    return x.is_cuda and TRITON


class RowwiseLinear(RowwiseLayer):
    """Changes of several adapters, each beside the others.

    Args:
        deltas: of each adapter, None where it leaves this layer alone.
    """

    def __init__(self, base: Linear | WindowedConv, context: RowContext, deltas: Sequence[LowRank | None]):
        super().__init__(base, context, deltas)
        weight, count = base.weight, len(deltas) * self.rank
        a, b = (weight.new_zeros(1 + count, size) for size in self.sizes)
        table = torch.zeros(len(deltas), self.rank, 1, dtype=torch.int32)
        for place, delta in enumerate(deltas):
            if delta is not None:
                first = 1 + place * self.rank
                own = slice(first, first + delta.rank)
                a[own], b[own] = scaled_factors(delta, weight)
                table[place, : delta.rank, 0] = torch.arange(first, own.stop)
        table = table.to(weight.device)
        self.a, self.b = Pages(a, table, a.shape[1]), Pages(b, table, b.shape[1])


def scaled_factors(delta: LowRank, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A `[rank, in]` and s Bᵀ `[rank, out]`, of the type of a weight and where it is."""
    b = delta.B.float() * delta.scale
    return delta.A.to(like), b.T.to(like)


class RowwiseConv(RowwiseLinear):
    """A frozen convolution over time and several adapters' changes of its windows."""

    base: WindowedConv

    def __init__(self, conv: nn.Conv1d, context: RowContext, deltas: Sequence[LowRank | None]):
        super().__init__(WindowedConv(conv), context, deltas)
        self.stride = conv.stride  # an encoder asks it for the length of its input

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(self.base.windows(x)).transpose(1, 2)


class RowwiseHead(nn.Module):
    """A linear layer that adapters have trained whole: each row is multiplied by its own adapter's.

    Args:
        weights, biases: of each adapter, None where it has the base's.
    """

    def __init__(
        self,
        base: nn.Linear,
        context: RowContext,
        weights: Sequence[torch.Tensor | None],
        biases: Sequence[torch.Tensor | None],
    ):
        super().__init__()
        self.base, self.context = base, context
        like = base.weight
        self.weights = [like if weight is None else weight.to(like) for weight in weights]
        self.biases = [base.bias if bias is None else bias.to(like) for bias in biases]

    @property
    def weight(self) -> torch.Tensor:
        return self.base.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[rows, …, in]` → `[rows, …, out]`."""
        x = x.to(self.base.weight.dtype)
        parts = [
            linear(x[segment.first : segment.last], self.weights[segment.place], self.biases[segment.place])
            for segment in self.context.owners_of(len(x)).segments
        ]
        return torch.cat(parts)
