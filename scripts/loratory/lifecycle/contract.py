"""What a procedure file offers: something that happens to adapters and bases after, or around, their training.

A file under `procedures/` defines one class `Procedure(contract.Procedure)`; its fields are options. As with
methods, the file is imported while the config is read: torch is imported inside functions.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from loratory.domains.contract import Options

if TYPE_CHECKING:
    import numpy as np
    import torch

    from loratory.bases.core import Base
    from loratory.config import StageEntry
    from loratory.lifecycle.room import Room

Number: TypeAlias = "float | np.ndarray"  # a value, or its (resamples,) draws
Scores: TypeAlias = "Callable[[str, str], Number]"  # (arm, domain) -> by the primary metric, the larger the better


@dataclass(frozen=True)
class Arm:
    """A system of a procedure's table, as it stands until the next one is asked for.

    Attributes:
        name: of the final systems plain; what stands before or between them is `name:after_1`, and no row of a table.
        base: what reads the questions. model: what is called.
        kind: "base" of a base as it is, else "adapter".
        measures: {what, with its unit: number} besides the metrics, such as "trained numbers".
        stored: the adapter that is on the model is kept.
        whole: the base itself is kept, as the folder of a base; no adapter is on it.
        timed: what a batch of the questions takes is measured, with the adapter merged.
        invented: {domain: inputs that no person made, which it learnt from}; they are held against the test records.
    """

    name: str
    base: Base
    model: torch.nn.Module
    kind: str = "adapter"
    measures: Mapping[str, float] = field(default_factory=dict)
    stored: bool = False
    whole: bool = False
    timed: bool = False
    invented: Mapping[str, Sequence[str]] = field(default_factory=dict)


class Procedure(Options):
    """One procedure, with its options.

    Attributes:
        families: of bases that it works on.
        one_domain: all domains of an entry are entries of one, so that their numbers can be averaged.
        fewest_domains: how many an entry must name.
    """

    families: ClassVar[tuple[str, ...]] = ("causal", "whisper")
    one_domain: ClassVar[bool] = False
    fewest_domains: ClassVar[int] = 1

    @property
    def further_bases(self) -> dict[str, tuple[str, ...]]:
        """{base that it needs besides the entry's: families that it may be of; the entry's base's own if empty}."""
        return {}

    def base_conflict(self, family: str) -> str | None:
        """Why it cannot begin with a base of a family, with these options; None if it can."""
        return None

    @abstractmethod
    def iterate_arms(self, entry: StageEntry, room: Room) -> Iterator[Arm]:
        """Everything that the procedure is compared with, and itself, for one seed; first `base`: gains are over it.

        Args:
            entry: the config entry, which has `base`, `domains` and `adapter` besides the options.
            room: on the entry's base; `room.others` on the further ones.
        """

    def summarise_arms(
        self, arms: Sequence[str], domains: Sequence[str], score: Scores
    ) -> dict[str, dict[str, Number]]:
        """{what: {arm: number}} of all domains together; it is computed for values and for their draws alike."""
        return {}

    def mean_arms(self, arms: Sequence[str]) -> Mapping[str, Sequence[str]]:
        """{row of the table: the arms that it is the mean of}; such a row stands where the first of them did."""
        return {}
