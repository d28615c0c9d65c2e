"""LaMDA: a trained square matrix between a frozen projection and one that freezes column by column (Azizi et al. 2024,
arXiv:2406.12832).

    y = W x + s · (B S − B₀ S₀) A x          A fixed, S trained, columns [0, t) of B frozen
    t = min(r, ⌊r · step / (freeze_share · steps)⌋)

`init: spectral` starts from the weight's singular vectors, W ≈ U_r Σ_r V_rᵀ: A = V_rᵀ, B₀ = U_r, S₀ = Σ_r and s = 1.
The paper's exact start values are unconfirmed; that the adapter's start is taken off the function (the paper would
call the rest of W its frozen base), and that columns freeze in the order of falling singular values, are project
interpretations. `init: released_code` starts from B₀ = 0 with A and S drawn and s = alpha / r.

The released code fails to freeze: its schedule lacks the factor r, and a gradient of zero leaves AdamW's momentum and
decay. Here the moments of frozen columns are zeroed, and B and S have no weight decay, which from the spectral start
would also pull the function away from the base's.
"""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from loratory.adapters import contract
from loratory.errors import InputError

if TYPE_CHECKING:
    import torch

    from loratory.adapters.contract import Parameters, Tensors
    from loratory.adapters.deltas import LowRank
    from loratory.training.session import AdapterSession


class Method(contract.Method):
    """y = W x + s · (B S − B₀ S₀) A x with A `[rank, in]`, S `[rank, rank]`, B `[out, rank]`."""

    fixed: ClassVar[frozenset[str]] = frozenset({"A", "start", "moving"})

    rank: int = Field(64, ge=1, description="rank of the update")
    init: Literal["spectral", "released_code"] = Field(
        "spectral", description="from singular vectors of the weight as in the paper, or drawn as in the released code"
    )
    alpha: float = Field(16.0, gt=0, description="scale numerator of `released_code`; `spectral` has the scale 1")
    freeze_share: float = Field(0.3, gt=0, le=1, description="share of the steps after which all of B is frozen")

    @property
    def scale(self) -> float:
        return 1.0 if self.init == "spectral" else self.alpha / self.rank

    def initial_tensors(self, weight: torch.Tensor, generator: torch.Generator) -> Tensors:
        import torch

        made = self.spectral_tensors(weight) if self.init == "spectral" else self.random_tensors(weight, generator)
        return made | {"moving": torch.ones(self.rank)}

    def spectral_tensors(self, weight: torch.Tensor) -> Tensors:
        from loratory.adapters.spectrum import leading_singular_vectors

        if self.rank > min(weight.shape):
            shape = f"at most {min(weight.shape)}, the rank of a weight {tuple(weight.shape)}"
            raise InputError("rank", "more singular vectors than there are", self.rank, shape)
        left, values, right = leading_singular_vectors(weight, self.rank)
        b, s = left.contiguous(), values.diag()
        return {"A": right.contiguous(), "S": s, "B": b, "start": b @ s}

    def random_tensors(self, weight: torch.Tensor, generator: torch.Generator) -> Tensors:
        import torch

        out, inner = weight.shape
        a, s = torch.empty(self.rank, inner), torch.empty(self.rank, self.rank)
        a.uniform_(-1 / sqrt(inner), 1 / sqrt(inner), generator=generator)
        s.uniform_(-1 / sqrt(self.rank), 1 / sqrt(self.rank), generator=generator)
        return {"A": a, "S": s, "B": torch.zeros(out, self.rank)}

    def forward(self, x: torch.Tensor, tensors: Tensors, training: bool) -> torch.Tensor:
        from torch.nn.functional import linear

        return linear(linear(x, tensors["A"]), self.left_factor(tensors))

    def left_factor(self, tensors: Tensors) -> torch.Tensor:
        """What stands left of A, `[out, rank]`."""
        import torch

        # In bf16 the product would differ from its start by rounding alone, as much as training changes it.
        with torch.autocast(tensors["B"].device.type, enabled=False):
            product = self.scale * (tensors["B"] @ tensors["S"])
            return product - tensors["start"] if "start" in tensors else product

    def weight_delta(self, tensors: Tensors, weight: torch.Tensor) -> LowRank:
        from loratory.adapters.deltas import LowRank

        return LowRank(tensors["A"], self.left_factor(tensors), 1.0)

    def prepare_training(self, session: AdapterSession) -> None:
        for layer in session.layers.values():
            moving = layer.tensors["moving"]
            layer.adapter["B"].register_hook(lambda gradient, moving=moving: gradient * moving)

    def create_optimizer(self, session: AdapterSession, parameters: Parameters) -> torch.optim.Optimizer:
        """Without gradient, moments and decay AdamW adds exactly 0 to a frozen column."""
        return session.adamw_without_decay(lambda name: ".adapter." in name, parameters)

    def before_step(self, session: AdapterSession, step: int) -> None:
        for layer in session.layers.values():
            rank, b = len(layer.tensors["moving"]), layer.adapter["B"]
            frozen = frozen_columns(step, session.recipe.steps, rank, self.freeze_share)
            layer.tensors["moving"][:frozen] = 0
            b.requires_grad_(frozen < rank)
            state = session.optimizing.state
            if frozen == rank:
                state.pop(b, None)  # a wholly frozen B costs no memory
            for moment in ("exp_avg", "exp_avg_sq") if b in state else ():
                state[b][moment][:, :frozen] = 0


def frozen_columns(step: int, steps: int, rank: int, share: float) -> int:
    """How many columns of B rest in a step."""
    return min(rank, int(rank * step / (share * steps)))
