"""Fresh experts: untrained LoRAs (Hu et al. 2021, arXiv:2106.09685) on the layers of the experts that were given, for
mixers that train their own.

    ΔW = alpha / rank · B A with A ~ U(±1/√in) (Kaiming-uniform, a = √5) and B = 0

No torch at the top: the methods are imported while the config is read.
"""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from loratory.errors import InputError
from loratory.mixers import contract

if TYPE_CHECKING:
    from loratory.adapters.deltas import Adapter, LowRank

RANK = Field(None, ge=1, description="rank of a fresh expert; none takes each layer's largest among those given")
ALPHA = Field(None, gt=0, description="its scale numerator; none takes that of the given expert of largest rank")


class UntrainedExperts(contract.Mixer):
    """A mixer that starts experts of its own and trains them on all that the given ones and gates learn from."""

    splits: ClassVar[tuple[str, ...]] = ("train", "gate")

    @property
    def trains_experts(self) -> bool:
        return True


def max_rank_deltas(given: dict[str, Adapter]) -> dict[str, LowRank]:
    """{layer: the change of largest rank} of every layer that any of the given experts changes.

    Raises:
        InputError: an expert is not low-rank, or has a head of its own, which a fresh expert would lack.
    """
    from loratory.adapters.deltas import check_low_rank

    found: dict[str, LowRank] = {}
    for name, adapter in given.items():
        check_low_rank(f"expert {name}", adapter, "fresh experts cannot follow a change that is not low-rank")
        if adapter.heads:
            what, fix = "fresh experts would lack this head", "use a base without heads, or a mixer of given experts"
            raise InputError(f"expert {name}", what, next(iter(adapter.heads)), fix=fix)
        for module, delta in adapter.deltas.items():
            if module not in found or delta.rank > found[module].rank:
                found[module] = delta
    return found


def untrained_expert(
    name: str, like: dict[str, LowRank], seed: int, rank: int | None = None, alpha: float | None = None
) -> Adapter:
    """One untrained expert.

    Args:
        name: of the expert; its numbers depend on (seed, name, layer). like: its layers, and for each of them the
            rank, alpha and sizes that hold where `rank` and `alpha` are None.
        alpha: scale numerator; scale = alpha / rank.
    """
    from loratory.adapters.deltas import Adapter

    return Adapter(
        {module: untrained_delta(f"{name}.{module}", delta, seed, rank, alpha) for module, delta in like.items()}
    )


def untrained_delta(name: str, like: LowRank, seed: int, rank: int | None, alpha: float | None) -> LowRank:
    import torch

    from loratory.adapters.core import generator_for
    from loratory.adapters.deltas import LowRank

    out, inner = like.B.shape[0], like.A.shape[1]
    rank, alpha = rank or like.rank, alpha or like.scale * like.rank
    a = torch.empty(rank, inner).uniform_(-1 / sqrt(inner), 1 / sqrt(inner), generator=generator_for(seed, name))
    return LowRank(a, torch.zeros(out, rank), alpha / rank)
