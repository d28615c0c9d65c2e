"""LoRA-XS: a trained square matrix between frozen singular vectors of the weight (arXiv:2405.17604).

y = W x + s · B R A x with W ≈ U_r Σ_r V_rᵀ, B = U_r, A = Σ_r V_rᵀ, R ~ N(0, 1e-5²). R is the N of the class that
this one derives from.

Project interpretation: A carries the singular values, as in the released code (in the paper's text it may be B).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from loratory.adapters.methods import structured_lora

if TYPE_CHECKING:
    import torch

    from loratory.adapters.contract import Tensors


class Method(structured_lora.Method):
    """y = W x + s · B R A x with W ≈ U Σ Vᵀ cut to the rank, B = U and A = Σ Vᵀ fixed; only R `[rank, rank]`, at the
    start ~ N(0, 1e-5²), is trained; s = alpha / rank."""

    fixed: ClassVar[frozenset[str]] = frozenset({"A", "B"})

    rank: int = Field(32, ge=1, description="rank of the update; rank² numbers are trained in each layer")
    alpha: float = Field(64.0, gt=0, description="scale numerator; the update is multiplied by alpha / rank")

    def initial_tensors(self, weight: torch.Tensor, generator: torch.Generator) -> Tensors:
        import torch

        from loratory.adapters.spectrum import check_rank, leading_singular_vectors

        check_rank(self.rank, weight)
        u, sigma, v = leading_singular_vectors(weight, self.rank)
        middle = 1e-5 * torch.randn(self.rank, self.rank, generator=generator)
        return {"A": sigma[:, None] * v, "N": middle, "B": u}
