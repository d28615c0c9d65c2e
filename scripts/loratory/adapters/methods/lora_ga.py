"""LoRA-GA: a start from which a first step of gradient descent goes where full fine-tuning would.

Wang et al. 2024, arXiv:2407.05000.

y = W x + s (B A − B₀ A₀) x, with A₀ and B₀ from disjoint halves of the leading 2·rank singular directions of the mean
gradient G = U Σ Vᵀ of W; Σ itself never enters.

The theorem is about gradient descent; what trains is AdamW, as in the paper. `benchmarks/first_step.py` measures the
cosine between the first step and −G: 0.92 by gradient descent but 0.34 by AdamW, of plain LoRA 0.24 and 0.11.

Project interpretation: an SVD that is the same in every run (`adapters.spectrum`); G over batches of the training's
own size; `norm_clip`, which is for a W that is really changed, has no counterpart.
"""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from loratory.adapters import offset
from loratory.errors import InputError

if TYPE_CHECKING:
    import torch

    from loratory.adapters.contract import Tensors
    from loratory.training.session import AdapterSession


class Method(offset.OffsetMethod):
    """y = W x + s (B A − B₀ A₀) x from A = A₀, B = B₀; s = alpha / √rank, or alpha / rank if not `stabilised`."""

    needs_plain_weights: ClassVar[bool] = True

    alpha: float = Field(16.0, gt=0, description="scale numerator")
    stabilised: bool = Field(True, description="divide alpha by the root of the rank (rsLoRA), else by the rank")
    direction: Literal["ArB2r", "A2rBr", "ArBr", "random"] = Field(
        "ArB2r", description="which of the singular directions 1 … 2·rank A and B start from"
    )
    init_scale: Literal["stable", "gd", "unit", "weightS"] = Field(
        "stable", description="length of the start's rows: out^¼/√gamma, 1/s, 1, or by the singular values of W"
    )
    gamma: float = Field(64.0, gt=0, description="larger starts smaller, with init_scale stable")
    batches: int = Field(8, ge=1, description="training batches that the gradient is averaged over")

    @property
    def scale(self) -> float:
        return self.alpha / (sqrt(self.rank) if self.stabilised else self.rank)

    def initial_tensors(self, weight: torch.Tensor, generator: torch.Generator) -> Tensors:
        most = min(weight.shape) // 2
        if self.rank > most:
            raise InputError("rank", "2·rank singular directions are needed", self.rank, f"at most {most}")
        return self.zero_tensors(weight)

    def prepare_training(self, session: AdapterSession) -> None:
        import torch

        from loratory.adapters.core import generator_for

        gradients = session.weight_gradients(self.batches)
        with torch.no_grad():
            for name, layer in session.layers.items():
                a, b = self.initial_factors(gradients[name], layer.weight, generator_for(session.seed, name))
                for key, tensor in self.pair_tensors(a, b).items():
                    layer.tensors[key].copy_(tensor)

    def initial_factors(
        self, gradient: torch.Tensor, weight: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(A₀, B₀) of one layer."""
        from loratory.adapters.spectrum import leading_singular_vectors

        left, _, right = leading_singular_vectors(gradient.to(weight.device), 2 * self.rank)
        rows, columns = self.direction_indices(generator)
        length = self.row_length(weight)
        return length * right[rows], length * left[:, columns]

    def direction_indices(self, generator: torch.Generator) -> tuple[list[int], list[int]]:
        """Indices of the singular directions of A and of B; disjoint, or the first step is not the best one."""
        import torch

        first, second = list(range(self.rank)), list(range(self.rank, 2 * self.rank))
        if self.direction == "random":
            drawn = torch.randperm(2 * self.rank, generator=generator).tolist()
            return drawn[: self.rank], drawn[self.rank :]
        kinds = {
            "ArB2r": (first, second),
            "A2rBr": (second, first),
            "ArBr": (list(range(1, 2 * self.rank, 2)), list(range(0, 2 * self.rank, 2))),
        }
        return kinds[self.direction]

    def row_length(self, weight: torch.Tensor) -> float:
        """Of each row of A₀ and each column of B₀."""
        from loratory.adapters.spectrum import leading_singular_vectors

        if self.init_scale == "stable":
            return weight.shape[0] ** 0.25 / sqrt(self.gamma)
        if self.init_scale == "weightS":
            _, leading, _ = leading_singular_vectors(weight, self.rank)
            return float((leading / self.scale).sqrt().mean())
        return 1 / self.scale if self.init_scale == "gd" else 1.0
