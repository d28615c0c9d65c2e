"""NOLA: both factors are trained mixtures of random matrices (Koohpayegani et al. 2023, arXiv:2310.02556).

A = A₀ + Σᵢ αᵢ Aᵢ, B = Σⱼ βⱼ Bⱼ and y = W x + (alpha / rank) · B A x. The bases Aᵢ, Bⱼ ~ U(−1, 1) / √k are drawn again
from a recorded seed wherever they are needed; only α = 0 and β = 0 are trained. A₀ is that of the authors' code:
without it, neither α nor β would ever get a gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from math import sqrt
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakKeyDictionary

from pydantic import Field

from loratory.adapters import contract

if TYPE_CHECKING:
    import torch

    from loratory.adapters.contract import Tensors
    from loratory.adapters.core import AdaptedLinear
    from loratory.adapters.deltas import LowRank

# {layer: {what determines them: bases}}, outside the layer so that no checkpoint has them
CACHED_BASES: WeakKeyDictionary[AdaptedLinear, dict[tuple, torch.Tensor]] = WeakKeyDictionary()


class Method(contract.Method):
    """Coefficients `[bases]` of A and of B; their number depends on neither the rank nor the layer's size."""

    fixed: ClassVar[frozenset[str]] = frozenset({"A0", "seeds"})

    rank: int = Field(8, ge=1, description="rank of the update")
    bases: int = Field(512, ge=1, description="random matrices that each factor mixes: its trained numbers")
    alpha: float = Field(8.0, gt=0, description="scale numerator; the update is multiplied by alpha / rank")
    keep_bases: bool = Field(
        False, description="hold a layer's 4 · bases · rank · (in + out) bytes in memory instead of drawing them anew"
    )

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def initial_tensors(self, weight: torch.Tensor, generator: torch.Generator) -> Tensors:
        import torch

        inner = weight.shape[1]
        return {
            "coefficients_A": torch.zeros(self.bases),
            "coefficients_B": torch.zeros(self.bases),
            "A0": torch.empty(self.rank, inner).uniform_(-1 / sqrt(inner), 1 / sqrt(inner), generator=generator),
            "seeds": torch.randint(2**62, (2,), generator=generator),
        }

    def mixed_factors(
        self, tensors: Tensors, shape: torch.Size, draw: Callable[..., torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A and B as they are now, for a weight of a `shape`."""
        from torch import autocast

        mixture, (out, inner), device = mixture_function(), shape, tensors["A0"].device
        seed_a, seed_b = tensors["seeds"].tolist()
        with autocast(device.type, enabled=False):  # backward, which is outside of it, must see the same bases
            a = mixture(tensors["coefficients_A"], partial(draw, seed_a, self.bases, self.rank, inner, device))
            b = mixture(tensors["coefficients_B"], partial(draw, seed_b, self.bases, out, self.rank, device))
        return tensors["A0"] + a, b

    def layer_output(self, layer: AdaptedLinear, x: torch.Tensor) -> torch.Tensor:
        from torch.nn.functional import linear

        draw = partial(cached_bases, layer) if self.keep_bases else draw_bases
        a, b = self.mixed_factors(layer.tensors, layer.shape, draw)
        return layer.base(x) + linear(linear(x.to(a.dtype), a) * self.scale, b).to(x.dtype)

    def weight_delta(self, tensors: Tensors, weight: torch.Tensor) -> LowRank:
        from loratory.adapters.deltas import LowRank

        a, b = self.mixed_factors(tensors, weight.shape, draw_bases)
        return LowRank(a, b, self.scale)


def draw_bases(seed: int, count: int, rows: int, columns: int, device: torch.device) -> torch.Tensor:
    """Bases `[count, rows, columns]`; on the CPU first, whose generator gives the same everywhere."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    return torch.empty(count, rows, columns).uniform_(-1, 1, generator=generator).div_(sqrt(count)).to(device)


def cached_bases(layer: AdaptedLinear, *key: Any) -> torch.Tensor:
    """`draw_bases(*key)`, once for as long as the layer lives."""
    bases = CACHED_BASES.setdefault(layer, {})
    if key not in bases:
        bases[key] = draw_bases(*key)
    return bases[key]


@cache
def mixture_function() -> Callable[[torch.Tensor, Callable[[], torch.Tensor]], torch.Tensor]:
    """(coefficients, () -> bases) -> their mixture; backward makes the bases again instead of keeping them."""
    import torch

    class BasisMixture(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, coefficients: torch.Tensor, bases: Callable[[], torch.Tensor]) -> torch.Tensor:
            ctx.bases = bases
            return torch.einsum("k,kij->ij", coefficients, bases())

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
            return torch.einsum("ij,kij->k", gradient, ctx.bases()), None

    return BasisMixture.apply
