"""What can be evaluated, and what each is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from loratory import registry

if TYPE_CHECKING:
    import torch

    from loratory.bases.core import Base
    from loratory.domains.contract import TaskOptions


@dataclass(frozen=True)
class System:
    """Something that predicts.

    Attributes:
        names: what it is called; a control has several names, one for each mixture that it is a control of.
        kind: "base", "adapter", "cut" (an adapter at a lower rank), "control" or "mixture". model: what is called.
        others_past: it is asked about each record with the past of another user.
    """

    names: tuple[str, ...]
    kind: str
    model: torch.nn.Module
    others_past: bool = False

    @property
    def name(self) -> str:
        return self.names[0]


class AnswerKey(NamedTuple):
    """What an answer is of; `seed` is None where it is the same whatever the seed."""

    system: str
    split: str
    seed: int | None


def answer_key(system: System, split: str, seed: int) -> AnswerKey:
    """The bare base says the same whatever the seed, unless it samples."""
    return AnswerKey(system.name, split, seed if system.kind != "base" or split == "sample" else None)


@dataclass(frozen=True)
class TrainedModels:
    """What one seed's trainings made: {system name, such as "lora@protein": adapter folder}, {mixture: folder}, and
    {system name: (one of the adapters, rank that it is cut to)}."""

    adapters: dict[str, Path]
    mixtures: dict[str, Path]
    cuts: Mapping[str, tuple[str, int]] = field(default_factory=dict)

    def folder(self, name: str) -> Path:
        """Of an adapter, or of the one that a cut is made of."""
        return self.adapters[self.cuts[name][0] if name in self.cuts else name]


def is_evaluated(split: str, system: System, domain: str) -> bool:
    """Choices on `valid` are between single experts; samples are of a domain's own adapters and of mixtures alone."""
    if system.kind == "cut":
        return split == "test"
    if split == "valid":
        return system.kind in ("base", "adapter")
    return split != "sample" or system.kind != "adapter" or system.name.endswith(f"@{domain}")


def ranks_candidates(system: System) -> bool:
    """Whether it is asked about all candidates of a question, where the config asks for that at all."""
    return system.kind != "cut" and not system.others_past


def split_outputs(base: Base, domain: str, task: TaskOptions, split: str) -> tuple[str, ...]:
    """What a system is asked for about the records of a split."""
    if split == "sample":
        return ("sample",)
    outputs = task.choose_outputs(registry.family_outputs(domain, base.family))
    return tuple(output for output in outputs if output not in ("sample", "rank"))
