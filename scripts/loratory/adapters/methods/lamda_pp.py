"""LaMDA++ (project rule): LaMDA with a rank of its own for every layer (Azizi et al. 2024, arXiv:2406.12832).

The paper gives layers ranks by the spectra of their weights, without data; its exact rule is unconfirmed. Project
rule: with the energy E_m(k) = Σ_{i≤k} σ_i² / Σ_i σ_i² of layer m's weight and one threshold τ for all layers,

    r_m = min {k : E_m(k) ≥ τ}, at least r / 2 and at most 2 r,

for the largest τ with Σ r_m ≤ M · r. A flatter spectrum gets a larger rank. All else is LaMDA's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from loratory.adapters.methods import lamda

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from loratory.adapters import contract

FULL = 1 - 1e-9  # above, the energy of a float32 spectrum is noise


class Method(lamda.Method):
    """y = W x + s · (B S − B₀ S₀) A x, with the rank of each layer from its weight's spectrum."""

    rank: int = Field(64, ge=1, description="mean rank of the layers; one layer has half of it to twice as much")

    def layer_methods(self, weights: Mapping[str, torch.Tensor]) -> dict[str, contract.Method]:
        energies = [spectral_energy(weight, 2 * self.rank) for weight in weights.values()]
        ranks = allocate_ranks(energies, self.rank)
        return {name: self.model_copy(update={"rank": rank}) for name, rank in zip(weights, ranks)}


def spectral_energy(weight: torch.Tensor, most: int) -> torch.Tensor:
    """E(k), k = 1, … `most`: the share of the squared norm in the k largest singular values."""
    from loratory.adapters.spectrum import leading_singular_vectors

    _, values, _ = leading_singular_vectors(weight, min(most, *weight.shape))
    return values.double().square().cumsum(0) / weight.double().square().sum()


def allocate_ranks(energies: list[torch.Tensor], mean: int) -> list[int]:
    """Ranks whose mean is at most `mean`, by the largest threshold of energy that allows it."""
    low, high = 0.0, FULL
    for _ in range(60):  # halvings, past the precision of a float
        middle = (low + high) / 2
        fits = sum(least_rank(curve, middle, mean) for curve in energies) <= mean * len(energies)
        low, high = (middle, high) if fits else (low, middle)
    return [least_rank(curve, low, mean) for curve in energies]


def least_rank(curve: torch.Tensor, threshold: float, mean: int) -> int:
    """The least rank with that energy, between mean / 2 and 2 · mean, and no more than the weight has."""
    least = int((curve < threshold).sum()) + 1
    return min(max(least, mean // 2, 1), 2 * mean, len(curve))
