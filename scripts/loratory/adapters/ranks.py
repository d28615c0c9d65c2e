"""Trained adapters at lower ranks: those of methods that train for it, and beside them a plain LoRA cut by SVD.

A method that serves many ranks in one training is worth something at a rank where it beats what costs nothing there:
an ordinary LoRA of full rank, whose change is cut to the same rank by SVD.

Torch is not imported here, as rules ask which cuts there are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from loratory import registry

if TYPE_CHECKING:
    from loratory.adapters.contract import Method
    from loratory.adapters.deltas import Adapter


@dataclass(frozen=True)
class RankCut:
    """A trained adapter at a lower rank.

    Attributes:
        adapter: its name in the config. rank: what it is cut to.
        control: the plain LoRA that is cut to the same rank by SVD; None where no such LoRA is trained beside it.
    """

    adapter: str
    rank: int
    control: str | None

    @property
    def name(self) -> str:
        return f"{self.adapter} (rank {self.rank})"

    @property
    def control_name(self) -> str | None:
        return f"{self.control} (SVD to rank {self.rank})" if self.control else None


def rank_cuts(adapters: Mapping[str, Any], first: str) -> list[RankCut]:
    """The cuts of all adapters whose methods train for lower ranks, in the order of the adapters.

    Args:
        adapters: {name: config entry} of what is trained on one base and domain.
        first: the plain LoRA to be cut if it is one and its rank suffices; else the first of the others that is.
    """
    plain = [name for name in sorted(adapters, key=lambda name: name != first) if adapters[name].method == "lora"]
    return [
        RankCut(name, rank, next((p for p in plain if adapters[p].rank >= entry.rank), None))
        for name, entry in adapters.items()
        for rank in entry.lower_ranks
    ]


def cut_sources(cuts: list[RankCut]) -> dict[str, tuple[str, int]]:
    """{name of what is cut: (adapter that it is cut from, rank)} of all cuts and their controls, each once."""
    pairs = [(cut, ((cut.name, cut.adapter), (cut.control_name, cut.control))) for cut in cuts]
    return {name: (adapter, cut.rank) for cut, both in pairs for name, adapter in both if name and adapter}


def cut_controls(cuts: list[RankCut]) -> dict[str, dict[str, str | None]]:
    """{adapter: {name of its cut: name of the control beside it}}."""
    found: dict[str, dict[str, str | None]] = {}
    for cut in cuts:
        found.setdefault(cut.adapter, {})[cut.name] = cut.control_name
    return found


def cut_adapter(adapter: Adapter, rank: int) -> Adapter:
    """A trained low-rank adapter at a lower rank, as its method cuts it."""
    options = dict(adapter.run["run_info"]["peft_config"])
    method: Method = registry.load_module("method", options.pop("method")).Method(**options)
    cut = {name: (method.cut_to_rank(delta, rank), delta.kernel) for name, delta in adapter.deltas.items()}
    return replace(adapter, deltas={name: replace(delta, kernel=kernel) for name, (delta, kernel) in cut.items()})
