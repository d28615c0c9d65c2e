"""What a procedure works with, for one seed: the loaded base, the datasets, and the adapter's recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loratory.provenance import stage_code
from loratory.training.encoding import EncodedExamples
from loratory.training.job import Job
from loratory.training.sweep import base_facts, data_digests, encode_split

if TYPE_CHECKING:
    from loratory.adapters.contract import Method
    from loratory.bases.core import Base, Encoded
    from loratory.domains.contract import TaskOptions
    from loratory.training.schedule import Training

LEARNT = ("train", "gate", "valid")  # splits that a procedure may look at


@dataclass(frozen=True)
class Room:
    """Attributes:
    name: of the stage. adapter: the config's entry of the adapter, `adapters.…`.
    data: {domain: dataset folder}. tasks: {domain: task options}.
    job: title -> where a training of this name runs and keeps its checkpoints.
    examples: (domain, split) -> its examples as the base reads them, in the order of the dataset.
    others: {name: the room on a further base}; all other things are the same.
    """

    name: str
    base: Base
    adapter: Any
    seed: int
    data: Mapping[str, Path]
    tasks: Mapping[str, TaskOptions]
    job: Callable[[str], Job]
    examples: Callable[[str, str], Sequence[Encoded]]
    others: Mapping[str, Room] = field(default_factory=dict)

    @property
    def method(self) -> Method:
        return self.adapter

    @property
    def recipe(self) -> Training:
        """The one training of the adapter's entry; a stage has no grid of rates."""
        return self.adapter.training.at_rate(self.adapter.training.learning_rates[0])


def open_room(
    name: str,
    entry: Any,
    base: Base,
    adapter: Any,
    seed: int,
    data: Mapping[str, Path],
    tasks: Mapping[str, TaskOptions],
    device: str,
    checkpoints: Path | str,
    out: Path | str,
    others: Mapping[str, Base] = {},
) -> Room:
    facts = {
        "entry": entry.model_dump(mode="json"),
        "adapter": adapter.model_dump(mode="json"),
        "seed": seed,
        "base": base_facts(base),
        "others": {other: base_facts(own) for other, own in others.items()},
        "data": {domain: data_digests(folder, LEARNT) for domain, folder in data.items()},
        "tasks": {domain: task.model_dump(mode="json") for domain, task in tasks.items()},
        "code": stage_code(entry.procedure, adapter.method, data),
    }

    def job(title: str) -> Job:
        return Job(device, checkpoints, f"{name} {title} seed {seed}", out, **facts)

    def examples_on(base: Base) -> Callable[[str, str], EncodedExamples]:
        @cache
        def examples(domain: str, split: str) -> EncodedExamples:
            return encode_split(base, domain, data[domain], tasks[domain], split, adapter.training.max_examples)

        return examples

    room = Room(name, base, adapter, seed, data, tasks, job, examples_on(base))
    rooms = {other: replace(room, base=own, examples=examples_on(own)) for other, own in others.items()}
    return replace(room, others=rooms)
