"""QA-LoRA: LoRA whose change is the same for all inputs of a group (Xu et al. 2023, arXiv:2309.14717).

y = W x + s · B A p(x) with A `[rank, in / g]`, where p takes the mean of each g = `group_size` inputs in a row times
the number of groups. The change of W is constant within a row and group: a weight that is quantised in such groups
takes it up in its zero points alone, without a change of its integers. The base itself is not quantised here. What is
stored is a plain LoRA of the same rank, each column of A spread over its group.

p is PEFT's; the paper's pseudocode multiplies the mean by the size of a group, which is a sum: the same method with
another alpha.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from loratory.adapters.methods import lora
from loratory.errors import InputError

if TYPE_CHECKING:
    import torch

    from loratory.adapters.contract import Tensors
    from loratory.adapters.deltas import LowRank


class Method(lora.Method):
    """y = W x + s · B A p(x) with p the means of groups of inputs times their number; A ~ U(±√(g / in)), B = 0."""

    group_size: int = Field(16, ge=1, description="inputs that share a column of A; it divides every layer's inputs")

    def initial_tensors(self, weight: torch.Tensor, generator: torch.Generator) -> Tensors:
        inner = weight.shape[1]
        if inner % self.group_size:
            what, expected = "the groups do not divide the layer's inputs", f"a divisor of {inner}"
            raise InputError("group_size", what, self.group_size, expected)
        return super().initial_tensors(weight[:, :: self.group_size], generator)

    def forward(self, x: torch.Tensor, tensors: Tensors, training: bool) -> torch.Tensor:
        from torch.nn.functional import dropout, linear

        groups = tensors["A"].shape[1]
        pooled = dropout(x, self.dropout, training).unflatten(-1, (groups, self.group_size)).mean(-1) * groups
        return linear(linear(pooled, tensors["A"]) * self.scale, tensors["B"])

    def weight_delta(self, tensors: Tensors, weight: torch.Tensor) -> LowRank:
        from loratory.adapters.deltas import LowRank

        a = tensors["A"].repeat_interleave(self.group_size, dim=1)
        return LowRank(a, tensors["B"], self.scale * tensors["A"].shape[1] / self.group_size)
