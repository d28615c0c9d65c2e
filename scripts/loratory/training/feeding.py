"""The batches of a training, made while it learns from the ones before: a GPU should not wait for them.

Examples are read and encoded in a process of its own, tensors are made of them in a thread. Both go from step to step
in order, so what comes out is what the same functions would give if they were called when it is wanted.
"""

import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from loratory.data.files import read_json, write_json
from loratory.errors import InputError
from loratory.training.checkpoint import facts_digest
from loratory.training.encoding import KEPT, DrawnExamples, EncodedExamples, Examples
from loratory.training.job import Job
from loratory.training.processes import is_main_process
from loratory.training.schedule import Schedule

Read = TypeVar("Read")
Made = TypeVar("Made")
GRACE = 30  # seconds


class Feed(Generic[Read, Made]):
    """step -> its batches. Steps are best asked for in order; the first may be any.

    Args:
        read: step -> what its batches are made of; in the process of its own it sees the world as it was at the first
            call, so it is a pure function.
        collate: makes the batches of that; beside the training's own steps, so it draws from no global generator.
        steps: of the training. ahead: most steps that are read ahead; 0: by the thread, as reading costs nothing.
    """

    def __init__(
        self, read: Callable[[int], Read], collate: Callable[[Read], list[Made]], steps: int, ahead: int
    ) -> None:
        self.read, self.collate, self.steps, self.ahead = read, collate, steps, ahead
        self.source: Any = None
        self.thread: ThreadPoolExecutor | None = None
        self.due: int | None = None  # step of the batches that are being made

    def __enter__(self) -> Self:
        return self

    def __call__(self, step: int) -> list[Made]:
        if step != self.due:
            self.start(step)
        batches = self.made.result()
        self.make_next()
        return batches

    def start(self, step: int) -> None:
        self.stop()
        options: dict[str, Any] = {}
        if self.ahead:
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else they warn of the fork
            options = {"num_workers": 1, "prefetch_factor": self.ahead, "worker_init_fn": outlive_stops}
            options["multiprocessing_context"] = "fork"  # a loaded base is not copied
        own = torch.Generator()  # a loader draws a number, which must not be one of the training's
        reader = StepReader(self.read)
        steps = range(step, self.steps)
        self.source = iter(
            DataLoader(reader, batch_size=None, sampler=steps, collate_fn=same, generator=own, **options)
        )
        self.thread, self.due = ThreadPoolExecutor(1), step - 1
        self.make_next()

    def make_next(self) -> None:
        assert self.thread is not None and self.due is not None
        self.due += 1
        if self.due < self.steps:
            self.made: Future[list[Made]] = self.thread.submit(self.make_batches)

    def make_batches(self) -> list[Made]:
        found = next(self.source)
        if isinstance(found, InputError):
            raise found
        return self.collate(found)

    def stop(self) -> None:
        if self.thread is not None:
            self.thread.shutdown()
        self.source = self.thread = self.due = None  # ends the process

    def __exit__(self, *_: object) -> None:
        self.stop()


class StepReader(Dataset):
    """Errors of the input are handed over as they are; PyTorch would raise others in their place."""

    def __init__(self, read: Callable[[int], Any]) -> None:
        self.read = read

    def __getitem__(self, step: int) -> Any:
        try:
            return self.read(step)
        except InputError as error:
            return error


def same(found: Any) -> Any:
    return found


def outlive_stops(worker: int) -> None:
    """A signal to all processes of a job asks its training to finish a step, for which this one is still needed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))  # which ends it, unless it was ended before


def steps_ahead(sets: Sequence[Examples], recipe: Schedule) -> int:
    """How many steps are worth reading ahead in a process of its own: as many positions as are kept, so that a round
    is encoded behind another's steps; none where all examples are encoded and kept.

    Args:
        sets: each gives its batches to every step.
    """
    if all(map(is_kept, sets)):
        return 0
    return max(2, KEPT // (len(sets) * recipe.batch_tokens * recipe.gradient_accumulation_steps))


def is_kept(examples: Examples) -> bool:
    if isinstance(examples, EncodedExamples):
        return len(examples.kept) == len(examples)
    return not isinstance(examples, DrawnExamples)


def known_sizes(examples: Examples, job: Job, name: str = "") -> dict[int, int]:
    """{round: its number of batches}, as far as a training that goes on knows them already.

    Args:
        name: of the examples, where a training has several.
    """
    if not isinstance(examples, DrawnExamples):
        return {}
    return RoundSizes(job.folder / f"rounds.{facts_digest(examples=name, **job.made_with)}.json")


class RoundSizes(dict[int, int]):
    """{round: its number of batches} in a file: a training that goes on does not encode again what lies behind it."""

    def __init__(self, path: Path) -> None:
        super().__init__({int(number): size for number, size in read_json(path).items()} if path.is_file() else {})
        self.path = path

    def __setitem__(self, number: int, size: int) -> None:
        super().__setitem__(number, size)
        if is_main_process():
            write_json(self.path, self)
