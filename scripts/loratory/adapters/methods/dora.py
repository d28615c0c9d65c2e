"""DoRA: magnitude and direction of each row of the weight, trained apart (Liu et al. 2024, arXiv:2402.09353).

y = m / ‖V‖ · V x + bias with V = W + s · B A, ‖·‖ the norm of each row (of one output feature) and m = ‖W‖ at the
start. As in the paper's section 4.3, ‖V‖ counts as a constant for the gradient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from loratory.adapters import contract
from loratory.adapters.methods import lora

if TYPE_CHECKING:
    import torch

    from loratory.adapters.contract import Tensors
    from loratory.adapters.core import AdaptedLinear
    from loratory.adapters.deltas import Dense


class Method(lora.Method, contract.DenseMethod):
    """y = m / ‖V‖ · V x + bias with V = W + s · B A, norms of rows, and m = ‖W‖ at the start; trained: A, B, m."""

    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the input of the whole change while training")

    def initial_tensors(self, weight: torch.Tensor, generator: torch.Generator) -> Tensors:
        return {**super().initial_tensors(weight, generator), "m": weight.norm(dim=1)}

    def layer_output(self, layer: AdaptedLinear, x: torch.Tensor) -> torch.Tensor:
        from torch.nn.functional import dropout, linear

        tensors, base = layer.tensors, layer.base(x)
        dropped = dropout(x, self.dropout, layer.training)
        if self.dropout and layer.training:
            plain = linear(dropped, layer.weight)
        else:  # W x is already there; the bias is no part of what m rescales
            plain = base if layer.base.bias is None else base - layer.base.bias
        ratio = self.magnitude_ratio(tensors, layer.weight)
        added = (ratio - 1) * plain + ratio * self.forward(dropped.to(layer.dtype), tensors, False)
        return base + added.to(base.dtype)

    def weight_delta(self, tensors: Tensors, weight: torch.Tensor) -> Dense:
        from loratory.adapters.deltas import Dense

        return Dense(self.magnitude_ratio(tensors, weight)[:, None] * self.direction_matrix(tensors, weight) - weight)

    def magnitude_ratio(self, tensors: Tensors, weight: torch.Tensor) -> torch.Tensor:
        """m / ‖V‖ `[out]`; only m gets a gradient."""
        import torch

        with torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
            norms = self.direction_matrix(tensors, weight).norm(dim=1)
        return tensors["m"] / norms.clamp_min(torch.finfo(norms.dtype).tiny)  # a row of zeros stays one

    def direction_matrix(self, tensors: Tensors, weight: torch.Tensor) -> torch.Tensor:
        """V = W + s · B A."""
        return weight.float() + self.scale * (tensors["B"] @ tensors["A"])
