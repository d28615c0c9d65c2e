"""PiSSA: the principal singular directions of the weight are trained, the rest is frozen (Meng et al. 2024,
arXiv:2404.02948).

W = U Σ Vᵀ. With r = rank and s = alpha / rank, B₀ = U_r √(Σ_r / s) and A₀ = √(Σ_r / s) V_rᵀ, so that s B₀ A₀ is the
part of W that is trained and W − s B₀ A₀ the part that stays. A fresh adapter changes nothing. The SVD is exact
or, of a large weight, nearly so (`adapters.spectrum`); with `iterations` it is the paper's fast one, from a random
subspace of r directions. What it misses stays in the frozen part.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from loratory.adapters import offset

if TYPE_CHECKING:
    import torch

    from loratory.adapters.contract import Tensors


class Method(offset.OffsetMethod):
    """y = W x + s (B A − B₀ A₀) x with s B₀ A₀ the best approximation of W of that rank."""

    iterations: int | None = Field(
        None,
        ge=0,
        description="power iterations of a fast, approximate SVD (the paper: 1 to 16); none: exact, or nearly",
    )

    def initial_tensors(self, weight: torch.Tensor, generator: torch.Generator) -> Tensors:
        from loratory.adapters.spectrum import approximate_singular_vectors, check_rank, leading_singular_vectors

        check_rank(self.rank, weight)
        if self.iterations is None:
            left, values, right = leading_singular_vectors(weight, self.rank)
        else:
            left, values, right = approximate_singular_vectors(weight, self.rank, self.iterations, generator)
        root = (values / self.scale).sqrt()
        return self.pair_tensors(root[:, None] * right, left * root)
