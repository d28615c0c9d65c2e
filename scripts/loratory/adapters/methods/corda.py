"""CorDA: singular directions of the weight as the data weighs them (Yang et al. 2024, arXiv:2406.05223).

For a layer that reads X_i `[positions, in]` in example i, C = mean over i of X̂_iᵀ X̂_i, X̂_i = X_i / |max X_i| (largest
entry, as in the released code). C gets a share of its mean diagonal added to its diagonal, 0.01 and then twice as much
until its computed inverse is one. With W C = U Σ Vᵀ and s = alpha / rank,

    B₀ = U √(Σ / s)        A₀ = √(Σ / s) Vᵀ C⁻¹

of the `rank` largest directions (`ipm`: the new task is learnt fastest) or of the smallest ones (`kpm`: what the
examples know is kept; they should then be examples of that knowledge, while here they are the training's own). A
fresh adapter changes nothing. One example at a time is passed through the base, so that no position is padding.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from loratory.adapters import offset
from loratory.errors import InputError

if TYPE_CHECKING:
    import torch

    from loratory.adapters.contract import Tensors
    from loratory.training.session import AdapterSession

DAMPING, TOLERANCE = 0.01, 0.05  # first share of the mean diagonal; largest ‖C C⁻¹ − I‖_F of a usable inverse


class Method(offset.OffsetMethod):
    """y = W x + s (B A − B₀ A₀) x with s B₀ A₀ = U Σ Vᵀ C⁻¹ cut to the rank, from W C = U Σ Vᵀ."""

    mode: Literal["ipm", "kpm"] = Field(
        "ipm", description="train the directions that matter most to the examples (ipm) or least (kpm)"
    )
    examples: int = Field(256, ge=1, description="training examples whose activations are measured")

    def initial_tensors(self, weight: torch.Tensor, generator: torch.Generator) -> Tensors:
        from loratory.adapters.spectrum import check_rank

        check_rank(self.rank, weight)
        return self.zero_tensors(weight)

    def prepare_training(self, session: AdapterSession) -> None:
        import torch

        covariances = input_covariances(session, self.examples)
        with torch.no_grad():
            for name, layer in session.layers.items():
                covariance = covariances.pop(name).to(layer.base.weight.device)
                check_covariance(f"{type(session.model).__name__}: {name}", covariance)
                for key, tensor in self.pair_tensors(*self.initial_factors(layer.weight, covariance)).items():
                    layer.tensors[key].copy_(tensor)

    def initial_factors(self, weight: torch.Tensor, covariance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(A₀, B₀) of one layer from C `[in, in]`."""
        from loratory.adapters.spectrum import leading_singular_vectors

        damped, inverse = damped_inverse(covariance)
        left, values, right = leading_singular_vectors(
            weight.float() @ damped, self.rank if self.mode == "ipm" else min(weight.shape)
        )
        part = slice(self.rank) if self.mode == "ipm" else slice(-self.rank, None)
        root = (values[part] / self.scale).sqrt()
        return root[:, None] * (right[part] @ inverse), left[:, part] * root


def input_covariances(session: AdapterSession, examples: int) -> Tensors:
    """{layer: C `[in, in]`}, on the CPU in float32; 0 of a layer that the examples do not reach."""
    import torch

    sizes = {name: layer.shape[1] for name, layer in session.layers.items()}
    sums = {name: torch.zeros(size, size) for name, size in sizes.items()}
    passes: Counter[str] = Counter()

    def add_example(name: str, x: torch.Tensor) -> None:
        peak = x.max().abs()
        x = x / peak if peak else x
        sums[name] += (x.T @ x).cpu()
        passes[name] += 1

    session.visit_inputs(examples, add_example)
    return {name: total / max(1, passes[name]) for name, total in sums.items()}


def check_covariance(where: str, covariance: torch.Tensor) -> None:
    """Raises:
    InputError: it has no inverse, however much is added to its diagonal.
    """
    size = float(covariance.diagonal().mean())
    if not covariance.isfinite().all() or size == 0:
        what, expected = "the layer's inputs cannot weigh its directions", "a mean square that is finite and not 0"
        raise InputError(where, what, size, expected)


def damped_inverse(covariance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """C with as much added to its diagonal as its inverse needs, and the inverse."""
    import torch

    identity = torch.eye(len(covariance), device=covariance.device)
    share = DAMPING
    while True:
        damped = covariance + share * covariance.diagonal().mean() * identity
        inverse = torch.linalg.inv(damped)
        if torch.dist(damped @ inverse, identity) < TOLERANCE:
            return damped, inverse
        share *= 2
