"""A thread that owns a base and answers for all that was trained on it.

Models that can share batches do, in an engine: their requests join and leave between two of its steps. The others are
put on the base one at a time, between two steps as well, and write all that they were asked for.
"""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import cast

from torch import nn

from loratory.adapters import core
from loratory.adapters.deltas import Adapter
from loratory.bases.core import Base, pad_rows
from loratory.bases.decoding import Sampling
from loratory.bases.families.causal import Family as CausalBase
from loratory.errors import InputError
from loratory.mixers.generation import Model, stream_tokens
from loratory.mixers.store import MANIFEST, open_expert, open_mixture
from loratory.serving.catalog import sort_models
from loratory.serving.engine import Engine, page_width
from loratory.serving.scheduling import Request

ADAPTERS_AT_ONCE = 32  # in the engine's batches; as many that answer alone stay in memory
ROWS_AT_ONCE = 64

Event = tuple[int, int | None] | InputError  # a row and its next token, None behind its last; or what went wrong


@dataclass(eq=False)
class Job:
    """Prompts that a model continues.

    Attributes:
        sampling: each prompt is drawn as if it were alone; greedy if None. deliver: is called on the server's thread
            with each `Event`. dropped: nobody waits for the answer any more.
    """

    model: str
    prompts: list[list[int]]
    limit: int
    sampling: Sampling | None
    deliver: Callable[[Event], None]
    dropped: bool = False


class ModelServer:
    """A causal base and models on it, which answer jobs on a thread of their own.

    Neither kind starves the other: the first job that waits for a model that answers alone begins, at the latest, when
    the others have had as many steps as the one before it wrote tokens.

    Args:
        folders: {name of a model: folder of the adapter or the mixture}. memory: GB for keys, values and adapters in
            use of those that share batches.

    Raises:
        InputError: the base is no causal language model.
    """

    def __init__(self, base: Base, folders: Mapping[str, Path], memory: float = 2.0):
        if not isinstance(base, CausalBase):
            raise InputError(base.folder, "what is served must write text", base.family, "a causal base")
        self.base, self.catalog = base, sort_models(base, folders)
        shared = {name: folder for name, folder in self.catalog.shared.items() if folder is not None}
        limits = pool_pages(base, memory), ADAPTERS_AT_ONCE, ROWS_AT_ONCE
        self.engine = Engine(base, shared, *limits) if self.catalog.shared else None
        self.names = [name for name in (base.manifest["name"], *folders) if name not in self.catalog.refused]
        self.open_adapter = lru_cache(ADAPTERS_AT_ONCE)(self.read_adapter)
        self.orders: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self.rows: dict[Request, tuple[Job, int]] = {}
        self.alone: deque[Job] = deque()
        self.steps_due = 0  # of those that share, before the next that answers alone
        self.model: Model = base.model
        self.current, self.on_base = "", ExitStack()  # the model that answers alone on the base, and what takes it off
        self.closed = False
        self.thread = Thread(target=self.work, name="models", daemon=True)
        self.thread.start()

    def submit(self, job: Job) -> None:
        """From any thread: the job begins as soon as there is room."""
        self.orders.put(partial(self.begin_job, job))

    def drop(self, job: Job, row: int | None = None) -> None:
        """From any thread: a row of a job, or all of it, ends wherever it is; its pages are free."""
        self.orders.put(partial(self.end_job, job, row))

    def close(self) -> None:
        """Ends the thread; the base is bare again."""
        self.closed = True
        self.orders.put(lambda: None)
        self.thread.join()
        self.put_model("")
        if self.engine:
            self.engine.close()

    def work(self) -> None:
        while not self.closed:
            self.take_orders(wait=not self.rows and not self.alone)
            if self.alone and (not self.rows or self.steps_due <= 0):
                self.answer_alone(self.alone.popleft())
            elif self.rows:
                self.steps_due -= 1
                self.step_rows()

    def take_orders(self, wait: bool = False) -> None:
        while wait or not self.orders.empty():
            self.orders.get()()
            wait = False

    def begin_job(self, job: Job) -> None:
        if job.model not in self.catalog.shared or self.engine is None:
            self.alone.append(job)
            return
        adapter = None if self.catalog.shared[job.model] is None else job.model
        try:
            for row, ids in enumerate(job.prompts):
                self.rows[self.engine.submit(ids, adapter, job.limit, job.sampling)] = job, row
        except InputError as error:
            self.fail_jobs([job], error)

    def end_job(self, job: Job, row: int | None = None) -> None:
        for request in [one for one, (own, place) in self.rows.items() if own is job and row in (None, place)]:
            del self.rows[request]
            if self.engine:
                self.engine.kill(request)
        if row is None:
            job.dropped = True
        if row is None and job in self.alone:
            self.alone.remove(job)

    def fail_jobs(self, jobs: Iterable[Job], error: Exception) -> None:
        """Ends jobs with an error; one that nobody foresaw is printed too."""
        if not isinstance(error, InputError):
            traceback.print_exception(error)
            error = InputError("server", f"{type(error).__name__}: {error}".splitlines()[0])
        for job in jobs:
            self.end_job(job)
            job.deliver(error)

    def step_rows(self) -> None:
        """A token for each row in the engine."""
        assert self.engine is not None  # as rows are in it
        self.put_model("")
        before = {request: len(request.written) for request in self.rows}
        try:
            self.engine.step()
        except Exception as error:  # such as too little memory: the next jobs may have enough
            self.fail_jobs({job for job, _ in self.rows.values()}, error)
            return
        for request, count in before.items():
            job, row = self.rows[request]
            for token in request.written[count:]:
                job.deliver((row, token))
            if not request.left:
                del self.rows[request]
                job.deliver((row, None))

    def answer_alone(self, job: Job) -> None:
        """All that a job asks of a model that shares no batches."""
        going_on, self.steps_due = {*range(len(job.prompts))}, 0
        try:
            self.put_model(job.model)
            for tokens in self.stream_alone(job):
                for row in sorted(going_on):
                    job.deliver((row, tokens[row]))
                going_on -= {row for row in going_on if tokens[row] is None}
                self.steps_due += 1
                self.take_orders()
                if job.dropped or self.closed:
                    return
        except Exception as error:
            self.fail_jobs([job], error)
            return
        for row in sorted(going_on):
            job.deliver((row, None))

    def stream_alone(self, job: Job) -> Iterator[list[int | None]]:
        ids = pad_rows(job.prompts, self.base.pad_id, self.base.device, left=True)
        mask = pad_rows([[1] * len(prompt) for prompt in job.prompts], 0, self.base.device, left=True)
        sampling = job.sampling
        if sampling is not None:
            sampling = replace(sampling, others=(sampling.seed,) * (len(job.prompts) - 1))
        return stream_tokens(self.model, ids, mask, max_new_tokens=job.limit, sampling=sampling, eos=self.base.end_id)

    def put_model(self, name: str) -> None:
        """Leaves a model that answers alone on the base; "": the engine, for all others."""
        if name == self.current:
            return
        self.on_base.close()
        self.current, self.model = "", self.base.model
        if name:
            self.model, self.current = self.on_base.enter_context(self.use_model(name)), name

    @contextmanager
    def use_model(self, name: str) -> Iterator[Model]:
        """Inside, the base is the model of this name, or is within it.

        Raises:
            InputError: its folder has been damaged.
        """
        folder, model = self.catalog.alone[name], self.base.model
        with self.engine.adapters.set_aside() if self.engine else nullcontext():
            if folder is None:
                yield model
            elif (folder / MANIFEST).is_file():
                mixture = open_mixture(folder, self.base)
                try:
                    yield mixture
                finally:
                    mixture.remove_experts()
            else:
                core.apply(model, self.open_adapter(name), folder)
                cast(nn.Module, model).to(self.base.device)
                try:
                    yield model
                finally:
                    core.detach(model)

    def read_adapter(self, name: str) -> Adapter:
        return open_expert(str(self.catalog.alone[name]), self.base.fingerprint)


def pool_pages(base: CausalBase, memory: float) -> int:
    """Pages in so many GB, or as many as the longest texts need."""
    size = page_width(base.model.config) * next(base.model.parameters()).element_size()
    return min(int(memory * 1e9 / size), ROWS_AT_ONCE * base.context * 2 * base.model.config.num_hidden_layers)
