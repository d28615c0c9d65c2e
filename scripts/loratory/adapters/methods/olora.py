"""OLoRA: an orthonormal start from the QR decomposition of the weight (Büyükakyüz 2024, arXiv:2406.01775).

W = Q R, B₀ = the first r columns of Q, A₀ = the first r rows of R, r = rank. s B₀ A₀ with s = alpha / rank is taken
off W, so that a fresh adapter changes nothing; at s = 1 it is the projection of W's columns onto the span of the first
r of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from loratory.adapters import offset

if TYPE_CHECKING:
    import torch

    from loratory.adapters.contract import Tensors


class Method(offset.OffsetMethod):
    """y = W x + s (B A − B₀ A₀) x with B₀ = Q[:, :r] and A₀ = R[:r] of W = Q R."""

    def initial_tensors(self, weight: torch.Tensor, generator: torch.Generator) -> Tensors:
        import torch

        from loratory.adapters.spectrum import check_rank

        check_rank(self.rank, weight)
        q = torch.linalg.qr(weight[:, : self.rank]).Q  # the first columns of Q depend on those of W alone
        return self.pair_tensors(q.T @ weight, q.contiguous())
