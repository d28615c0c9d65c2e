"""What experts must be to be mixed."""

from pathlib import Path

from torch import nn

from loratory.adapters.core import check_fit
from loratory.adapters.deltas import Adapter, check_low_rank
from loratory.errors import InputError


def check_trained_experts(experts: dict[str, Adapter], where: Path | str, fewest: int = 2) -> None:
    """Raises:
    InputError: fewer experts than a mixer must be given, or one that is untrained (B = 0 gives its gate no gradient).
    """
    if len(experts) < fewest:
        raise InputError(where, "too few experts", len(experts), f"at least {fewest}")
    for name, adapter in experts.items():
        if not adapter.dense and not adapter.own and not any(delta.B.any() for delta in adapter.deltas.values()):
            raise InputError(f"{where}:{name}", "the expert is untrained (B = 0)", fix="train it before the gate")


def check_experts(model: nn.Module, experts: dict[str, Adapter], where: Path | str) -> None:
    """Raises:
    InputError: an expert is not low-rank, does not fit the base, or has a head where others have none.
    """
    for name, adapter in experts.items():
        check_low_rank(f"{where}:{name}", adapter)
        if conv := [layer for layer, delta in adapter.deltas.items() if delta.kernel > 1]:
            what, expected = "experts of convolutions are not mixed", "experts of linear layers"
            raise InputError(f"{where}:{name}", what, conv[0], expected)
        check_fit(model, adapter, f"{where}:{name}")
    check_heads(experts, where)


def check_heads(experts: dict[str, Adapter], where: Path | str) -> None:
    """Raises:
    InputError: an expert's own head has other parts than that of the first expert.
    """
    first, like = next(iter(experts.items()))
    for name, adapter in experts.items():
        if adapter.heads.keys() != like.heads.keys():
            parts, expected = (", ".join(sorted(heads)) or "none" for heads in (adapter.heads, like.heads))
            what = f"the expert's own head is not that of {first}"
            raise InputError(f"{where}:{name}", what, parts, expected, "train all experts on the same base and task")
