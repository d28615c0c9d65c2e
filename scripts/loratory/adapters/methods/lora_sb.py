"""LoRA-SB: a small trained core between frozen factors that come from the first full step.

Ponkshe et al. 2024, arXiv:2411.19557.

y = W x + B R A x with only R `[rank, rank]` trained. B and A are the leading singular vectors, and R the singular
values, of D = −η sign(Ĝ): the first step of Adam on W itself, whose gradient Ĝ is summed over some batches. W is not
offset, so training starts from W plus the best low-rank part of that step and not from the base: this is by design.
The scale of other methods drops out and is 1.

    η = learning rate / max(1, warmup · examples of the whole training / `estimation_batch`)

as in the released code, whose warm-up is counted in mini-batches of the estimation (of 3 examples for mathematics, 10
for commonsense) and not in optimizer steps (of 32 and 144): its starts are 10 to 15 times smaller than the rate of the
first warm-up step. A start is a step of all weights at once, and one that is too long raises the loss: the log then
says so.

A step of gradient descent on R follows the gradient within the frozen factors, B Bᵀ G Aᵀ A, which is not the full one,
and AdamW trains. `benchmarks/first_step.py` measures the cosine between the first step and −G: 0.66 by gradient
descent, 0.23 by AdamW (of plain LoRA 0.24 and 0.11).

Project interpretation: Ĝ over batches of the training's own size, of which the sign alone counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from loratory.adapters import contract
from loratory.errors import InputError

if TYPE_CHECKING:
    import torch

    from loratory.adapters.contract import Tensors
    from loratory.adapters.deltas import LowRank
    from loratory.training.session import AdapterSession


class Method(contract.Method):
    """y = W x + B R A x; B, A have orthonormal columns and rows and are frozen, B R A starts as the first step."""

    fixed: ClassVar[frozenset[str]] = frozenset({"A", "B"})
    needs_plain_weights: ClassVar[bool] = True

    rank: int = Field(96, ge=1, description="rank of the update; its square is what each layer trains")
    batches: int = Field(8, ge=1, description="training batches that the gradient is summed over")
    estimation_batch: int = Field(
        3,
        ge=1,
        description="examples of the mini-batches that the start's warm-up is counted in; a smaller number makes a "
        "smaller start, to be tried where the log says that the start raises the loss",
    )

    def initial_tensors(self, weight: torch.Tensor, generator: torch.Generator) -> Tensors:
        import torch

        out, inner = weight.shape
        if self.rank > min(out, inner):
            raise InputError("rank", "larger than the layer", self.rank, f"at most {min(out, inner)}")
        return {
            "A": torch.zeros(self.rank, inner),
            "R": torch.zeros(self.rank, self.rank),
            "B": torch.zeros(out, self.rank),
        }

    def prepare_training(self, session: AdapterSession) -> None:
        import torch

        from loratory.adapters.spectrum import leading_singular_vectors

        gradients, rate = session.weight_gradients(self.batches), self.start_rate(session)
        before = session.mean_loss(self.batches)
        with torch.no_grad():
            for name, layer in session.layers.items():
                step = -rate * gradients[name].to(layer.weight.device).sign()
                left, values, right = leading_singular_vectors(step, self.rank)
                for key, tensor in {"A": right, "R": values.diag(), "B": left}.items():
                    layer.tensors[key].copy_(tensor)
        after = session.mean_loss(self.batches)
        if not after <= before:  # so that NaN is told too
            print(
                f"lora_sb: the start raises the loss from {before:.4g} to {after:.4g} (its step is {rate:.3g}); "
                "lower `learning_rates` or `estimation_batch`, or raise `warmup`",
                flush=True,
            )

    def start_rate(self, session: AdapterSession) -> float:
        """η: how far the start moves along each sign."""
        recipe = session.recipe
        mini_batches = session.count_examples() / self.estimation_batch
        return recipe.learning_rate / max(1.0, recipe.warmup * mini_batches)

    def forward(self, x: torch.Tensor, tensors: Tensors, training: bool) -> torch.Tensor:
        from torch.nn.functional import linear

        return linear(linear(linear(x, tensors["A"]), tensors["R"]), tensors["B"])

    def weight_delta(self, tensors: Tensors, weight: torch.Tensor) -> LowRank:
        from loratory.adapters.deltas import LowRank

        return LowRank(tensors["A"], tensors["B"] @ tensors["R"], 1.0)
