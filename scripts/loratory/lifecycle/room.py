"""What a procedure works with, for one seed: the loaded base, the datasets, and the adapter's recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loratory.provenance import stage_code
from loratory.training.encoding import EncodedExamples
from loratory.training.job import Job
from loratory.training.sweep import base_facts, data_digests, encode_split

if TYPE_CHECKING:
    from loratory.adapters.contract import Method
    from loratory.bases.core import Base
    from loratory.domains.contract import TaskOptions
    from loratory.training.schedule import Training

LEARNT = ("train", "valid")  # splits that a procedure may look at


@dataclass(frozen=True)
class Room:
    """Attributes:
    name: of the stage. adapter: the config's entry of the adapter, `adapters.…`.
    data: {domain: dataset folder}. tasks: {domain: task options}.
    job: title -> where a training of this name runs and keeps its checkpoints.
    examples: (domain, split) -> its examples as the base reads them, in the order of the dataset.
    """

    name: str
    base: Base
    adapter: Any
    seed: int
    data: Mapping[str, Path]
    tasks: Mapping[str, TaskOptions]
    job: Callable[[str], Job]
    examples: Callable[[str, str], EncodedExamples]

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
) -> Room:
    facts = {
        "entry": entry.model_dump(mode="json"),
        "adapter": adapter.model_dump(mode="json"),
        "seed": seed,
        "base": base_facts(base),
        "data": {domain: data_digests(folder, LEARNT) for domain, folder in data.items()},
        "tasks": {domain: task.model_dump(mode="json") for domain, task in tasks.items()},
        "code": stage_code(entry.procedure, adapter.method, data),
    }

    def job(title: str) -> Job:
        return Job(device, checkpoints, f"{name} {title} seed {seed}", out, **facts)

    @cache
    def examples(domain: str, split: str) -> EncodedExamples:
        return encode_split(base, domain, data[domain], tasks[domain], split, adapter.training.max_examples)

    return Room(name, base, adapter, seed, data, tasks, job, examples)
