"""Requests a second that an engine answers, how long each waits for its first token, and what memory that takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter, sleep

import torch

from loratory.serving.engine import Engine
from loratory.serving.scheduling import Request


@dataclass(frozen=True)
class Arrival:
    """A request that comes so many seconds after the first one could; the rest is what `Engine.submit` takes."""

    ids: Sequence[int]
    adapter: str | None
    limit: int
    seconds: float = 0.0


@dataclass(frozen=True)
class Throughput:
    """Of one series of requests.

    Attributes:
        seconds: from the start to the last answer. first_token: of each request, seconds from when it came to when its
            first token was there. written: the tokens of each, in the order of the arrivals.
        pool_bytes: the most that adapters, keys and values had of the pool after a step. device_bytes: the most that
            PyTorch held on a GPU; None on a CPU.
    """

    seconds: float
    first_token: list[float]
    written: list[list[int]]
    pool_bytes: int
    device_bytes: int | None

    @property
    def requests_per_second(self) -> float:
        return len(self.written) / self.seconds

    @property
    def tokens_per_second(self) -> float:
        """Of written ones."""
        return sum(map(len, self.written)) / self.seconds

    @property
    def median_first_token(self) -> float:
        return median(self.first_token)

    @property
    def p95_first_token(self) -> float:
        """The shortest time that 95 % of the requests do not exceed."""
        return sorted(self.first_token)[-(-95 * len(self.first_token) // 100) - 1]


def measure_throughput(engine: Engine, arrivals: Sequence[Arrival]) -> Throughput:
    """Submits each request when it comes, and steps until all are answered.

    Raises:
        InputError: as `Engine.submit`.
    """
    device = engine.pool.vectors.device
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    coming = sorted(range(len(arrivals)), key=lambda place: arrivals[place].seconds)
    requests: dict[int, Request] = {}
    first_token: dict[int, float] = {}
    most_pages, started = 0, perf_counter()
    while coming or engine.scheduler.waiting or engine.scheduler.running:
        while coming and arrivals[coming[0]].seconds <= perf_counter() - started:
            place = coming.pop(0)
            requests[place] = engine.submit(arrivals[place].ids, arrivals[place].adapter, arrivals[place].limit)
        if not engine.scheduler.waiting and not engine.scheduler.running:
            sleep(max(0.0, arrivals[coming[0]].seconds - (perf_counter() - started)))
            continue
        engine.step()
        most_pages = max(most_pages, engine.pool.pages - len(engine.pool.free))
        now = perf_counter() - started
        for place in requests.keys() - first_token.keys():
            if requests[place].written or requests[place].ended:
                first_token[place] = now - arrivals[place].seconds
    seconds = perf_counter() - started
    vectors, in_order = engine.pool.vectors, range(len(arrivals))
    return Throughput(
        seconds,
        [first_token[place] for place in in_order],
        [requests[place].written for place in in_order],
        most_pages * vectors.shape[1] * vectors.element_size(),
        torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    )
