"""LoftQ: LoRA on a quantised weight, started at what quantisation lost (Li et al. 2023, arXiv:2310.08659).

y = Q x + s · B A x, with Q a quantised W. From L = 0, `iterations` times in turn

    Q ← quantised(W − L)        L ← the best approximation of W − Q of that rank = U Σ Vᵀ

and at the end A = √(Σ / s) Vᵀ, B = U √(Σ / s), s = alpha / rank; so s B A = L, where PEFT, which leaves s out, expects
alpha = rank. Of 4 bits are NF4 (Dettmers et al. 2023, arXiv:2305.14314): 16 quantiles of a normal distribution times
the largest magnitude of each 64 numbers. Of 8 bits: 255 even levels times the largest magnitude of each row.

The function that is trained is that of the quantised base, and a fresh adapter is near the base, not equal to it.
What is stored is its difference from the ORIGINAL weight, Q − W + s B A: on the original base it gives the outputs
that were trained, quantisation and all. It has full rank; `export_rank` cuts it. Q is kept as codes of one byte and
made anew at every pass, so no memory is saved here: W is there too.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from loratory.adapters import contract

if TYPE_CHECKING:
    import torch

    from loratory.adapters.contract import Tensors
    from loratory.adapters.core import AdaptedLinear
    from loratory.adapters.deltas import Dense

BLOCK = 64  # numbers that share a scale in NF4


class Method(contract.DenseMethod):
    """y = Q x + s · B A x with Q + s B A ≈ W at the start; A and B are trained."""

    fixed: ClassVar[frozenset[str]] = frozenset({"codes", "scales"})
    needs_plain_weights: ClassVar[bool] = True

    rank: int = Field(8, ge=1, description="rank of the trained pair")
    alpha: float = Field(8.0, gt=0, description="scale numerator; the pair is multiplied by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the adapter's input while training")
    bits: Literal[4, 8] = Field(4, description="4: NF4 in blocks of 64 numbers; 8: even levels in rows")
    iterations: int = Field(1, ge=1, description="how often quantisation and approximation take turns; the paper: 5")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def initial_tensors(self, weight: torch.Tensor, generator: torch.Generator) -> Tensors:
        import torch

        from loratory.adapters.spectrum import check_rank, leading_singular_vectors

        check_rank(self.rank, weight)
        low_rank = torch.zeros_like(weight)
        for _ in range(self.iterations):
            quantised = quantised_tensors(weight - low_rank, self.bits)
            lost = weight - self.quantised_weight(quantised, weight.shape)
            left, values, right = leading_singular_vectors(lost, self.rank)
            low_rank = left * values @ right
        root = (values / self.scale).sqrt()
        return {"A": root[:, None] * right, "B": left * root} | quantised

    def quantised_weight(self, tensors: Tensors, shape: torch.Size) -> torch.Tensor:
        """Q `[out, in]` in float32."""
        levels = quantisation_levels(self.bits).to(tensors["scales"].device)
        return (levels[tensors["codes"].int()] * tensors["scales"]).flatten()[: shape.numel()].view(shape)

    def layer_output(self, layer: AdaptedLinear, x: torch.Tensor) -> torch.Tensor:
        from torch.nn.functional import linear

        quantised = self.quantised_weight(layer.tensors, layer.shape).to(x.dtype)
        added = self.forward(x.to(layer.dtype), layer.tensors, layer.training)
        return linear(x, quantised, layer.base.bias) + added.to(x.dtype)

    def forward(self, x: torch.Tensor, tensors: Tensors, training: bool) -> torch.Tensor:
        """What is added to the quantised layer's output."""
        from torch.nn.functional import dropout, linear

        return linear(linear(dropout(x, self.dropout, training), tensors["A"]) * self.scale, tensors["B"])

    def weight_delta(self, tensors: Tensors, weight: torch.Tensor) -> Dense:
        from loratory.adapters.deltas import Dense

        trained = self.quantised_weight(tensors, weight.shape) + self.scale * tensors["B"] @ tensors["A"]
        return Dense(trained - weight)


def quantised_tensors(weight: torch.Tensor, bits: int) -> Tensors:
    """The nearest levels of a weight `[out, in]`: `codes` `[blocks, numbers]` (bytes) and `scales` `[blocks, 1]`."""
    import torch

    size = BLOCK if bits == 4 else weight.shape[1]
    blocks = torch.nn.functional.pad(weight.flatten(), (0, -weight.numel() % size)).view(-1, size)
    scales = blocks.abs().amax(1, keepdim=True)
    levels = quantisation_levels(bits)
    halfway = (levels[1:] + levels[:-1]) / 2
    shares = blocks / scales.clamp(min=torch.finfo(torch.float32).tiny)  # a block of zeros stays one
    return {"codes": torch.bucketize(shares.contiguous(), halfway).to(torch.uint8), "scales": scales}


@cache
def quantisation_levels(bits: int) -> torch.Tensor:
    """From −1 to 1, in float32. Of 4 bits: the 16 levels of NF4, which are quantiles of a normal distribution at even
    steps, 8 of them on the positive side, 7 on the negative one, and 0."""
    import torch

    if bits == 8:
        return torch.arange(-127, 128) / 127
    outermost = 1 - (1 / 30 + 1 / 32) / 2  # the mean of what 15 and 16 quantiles would begin with
    above, below = (
        torch.special.ndtri(torch.linspace(0.5, outermost, count + 1, dtype=torch.float64)[1:]) for count in (8, 7)
    )
    levels = torch.cat([-below.flip(0), above.new_zeros(1), above])
    return (levels / levels.max()).float()
