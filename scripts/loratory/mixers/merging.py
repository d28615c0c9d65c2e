"""What mixers that merge share: all experts become one adapter before anything runs, so nothing is weighed after.

No torch at the top: the methods are imported while the config is read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from loratory.errors import InputError
from loratory.mixers import contract
from loratory.registry import unknown_name_error

if TYPE_CHECKING:
    import torch

    from loratory.adapters.deltas import Adapter, LowRank

MERGED_NAME = "merged"  # the name of the one expert that is left


class Merger(contract.Mixer):
    """One merged expert with weight 1; a method says in `prepare_experts` how it is made."""

    trained: ClassVar[bool] = False
    reads: ClassVar[contract.Reads] = "nothing"

    def routing_weights(self, gate: Any, seen: contract.GateInput, sizes: contract.GateShape) -> torch.Tensor:
        import torch

        return torch.ones(1, 1, 1, 1)


def merge_experts(
    given: dict[str, Adapter], merge: Callable[[str, dict[str, LowRank]], LowRank], where: str = "mixture"
) -> dict[str, Adapter]:
    """One adapter in place of those given.

    Args:
        merge: (module name, {expert: its change of this module}, without those that leave it alone) → their merger.

    Raises:
        InputError: an expert has a change that is not low-rank, or a head of its own: there is one place for a head.
    """
    from loratory.adapters.deltas import Adapter, check_low_rank

    for name, adapter in given.items():
        check_low_rank(f"{where}:{name}", adapter)
        if adapter.heads:
            what, first, fix = "a head of its own cannot be merged", next(iter(adapter.heads)), "weigh the experts"
            raise InputError(f"{where}:{name}", what, first, "an expert without heads", fix)
    modules = sorted({module for adapter in given.values() for module in adapter.deltas})
    changes = {m: {n: a.deltas[m] for n, a in given.items() if m in a.deltas} for m in modules}
    return {MERGED_NAME: Adapter({module: merge(module, found) for module, found in changes.items()})}


def expert_shares(
    asked: dict[str, float], given: dict[str, Adapter], usual: float, where: str = "mixture"
) -> dict[str, float]:
    """The weight of each expert: the one that was asked for, or the `usual` one if none was asked for at all.

    Raises:
        InputError: a share of an expert that is not there, or an expert without one beside others that have one.
    """
    if not asked:
        return dict.fromkeys(given, usual)
    for name in asked:
        if name not in given:
            raise unknown_name_error(f"{where}.shares", "expert", name, given)
    for name in given:
        if name not in asked:
            raise InputError(f"{where}.shares", "an expert without a share", name, "all experts, or none")
    return {name: asked[name] for name in given}
