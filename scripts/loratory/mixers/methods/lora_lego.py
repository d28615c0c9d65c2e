"""LoRA-LEGO: take all experts apart into units of rank one, cluster these, and build one adapter from the centroids.

Zhao et al. 2024, arXiv:2409.16167 (ICLR 2025). Unit j of expert i is m = [a_j; b_j], a row of A and a column of B.
Each of k clusters C gives a row and a column of the merger:

    c = mean_{m in C} m,  c ← c · mean_{m in C} ‖m‖ / ‖c‖,  ΔW = √(r / k) Σ_c b_c a_cᵀ

Units are averaged within a cluster and summed across clusters: two equal experts give that expert, k = Σ r_i distinct
units give √(r / k) times the sum. The norm and the features of the clustering are not confirmed by the paper; the
default norm is that of two implementations by others. Scales are divided between A and B before clustering; that, and
that experts of unequal ranks count as the largest of them (r, and k if none is given), is project interpretation.
"""

from __future__ import annotations

from math import copysign, sqrt
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from loratory.mixers.merging import Merger, merge_experts

if TYPE_CHECKING:
    import torch

    from loratory.adapters.deltas import Adapter, LowRank


NOISE = 1e-6  # a centroid this much shorter than its units is rounding: they are opposite and cancel


class Mixer(Merger):
    """One adapter of k centroids of the experts' units of rank one."""

    rank: int | None = Field(None, ge=1, description="clusters k; the largest rank among the experts if none")
    vectors: Literal["raw", "halves"] = Field(
        "raw", description="cluster units as they are, or with both halves made of length 1"
    )
    norm: Literal["inf", "2"] = Field("inf", description="which norm the centroids keep of their units")
    reweight_output: bool = Field(True, description="multiply by √(r / k)")
    canonical: bool = Field(
        False, description="ours, not the paper's: first give equal units (a, b), (−a, −b), (2a, b/2) one form"
    )

    def prepare_experts(self, given: dict[str, Adapter], seed: int) -> dict[str, Adapter]:
        from loratory.adapters.core import generator_for

        def merge_module(module: str, found: dict[str, LowRank]) -> LowRank:
            return self.rebuild_delta(
                list(found.values()), generator_for(seed, f"lego.{module}").initial_seed() % 2**32
            )

        return merge_experts(given, merge_module)

    def rebuild_delta(self, deltas: list[LowRank], seed: int) -> LowRank:
        import torch

        from loratory.adapters.deltas import LowRank

        width, rank = deltas[0].A.shape[1], max(delta.rank for delta in deltas)
        units = torch.cat([rank_units(delta) for delta in deltas])
        units = canonical_units(units, width) if self.canonical else units
        # sorted, so that the order of experts and ranks is nothing to k-means; equal units are one that counts more
        units, counts = units.unique(dim=0, return_counts=True)
        labels = cluster_labels(self.cluster_vectors(units, width), counts, self.rank or rank, seed)
        a, b = self.cluster_centroids(units, counts, labels).float().split([width, units.shape[1] - width], 1)
        return LowRank(a, (sqrt(rank / len(a)) if self.reweight_output else 1.0) * b.T, 1.0)

    def cluster_vectors(self, units: torch.Tensor, width: int) -> torch.Tensor:
        import torch
        from torch.nn.functional import normalize

        if self.vectors == "raw":
            return units
        return torch.cat([normalize(units[:, :width]), normalize(units[:, width:])], 1)

    def cluster_centroids(self, units: torch.Tensor, counts: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Means `[clusters, in + out]` of units, of the mean length of their units."""
        import torch

        member = torch.nn.functional.one_hot(labels).T * counts.double()
        member = member / member.sum(1, keepdim=True)

        def vector_lengths(vectors: torch.Tensor) -> torch.Tensor:
            return torch.linalg.vector_norm(vectors, ord=float(self.norm), dim=1, keepdim=True)

        means, lengths = member @ units, member @ vector_lengths(units)
        return means * (lengths / vector_lengths(means)).where(vector_lengths(means) > NOISE * lengths, 0.0)


def rank_units(delta: LowRank) -> torch.Tensor:
    """Units `[rank, in + out]` of a change, its scale divided between both halves."""
    import torch

    root = sqrt(abs(delta.scale))
    return torch.cat([root * delta.A.double(), copysign(root, delta.scale) * delta.B.double().T], 1)


def canonical_units(units: torch.Tensor, width: int) -> torch.Tensor:
    """Units of equal function in one form: both halves of equal length, the largest number of the first positive."""
    import torch
    from torch.nn.functional import normalize

    a, b = units[:, :width], units[:, width:]
    length = (a.norm(dim=1, keepdim=True) * b.norm(dim=1, keepdim=True)).sqrt()
    sign = a.gather(1, a.abs().argmax(1, keepdim=True)).sign()
    return sign * length * torch.cat([normalize(a), normalize(b)], 1)


def cluster_labels(features: torch.Tensor, counts: torch.Tensor, k: int, seed: int) -> torch.Tensor:
    """The cluster of each row, numbered without gaps; no more than there are rows."""
    import torch
    from sklearn.cluster import KMeans

    if k >= len(features):
        return torch.arange(len(features))
    found = KMeans(k, n_init=10, random_state=seed).fit(features.numpy(), sample_weight=counts.numpy())
    return torch.from_numpy(found.labels_).long().unique(return_inverse=True)[1]
