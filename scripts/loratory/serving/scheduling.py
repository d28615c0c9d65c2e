"""Which requests run: S-LoRA's admission, so that none that runs is ever short of memory, in the order they came."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from loratory.errors import InputError

if TYPE_CHECKING:
    import torch

PATIENCE = 8  # requests that may overtake one that waits for an adapter's place


@dataclass(eq=False)
class Request:
    """A text to be continued.

    Attributes:
        ids: of the prompt. adapter: its name, None for the bare base. limit: the most tokens that are written.
        draw: chooses a token by logits `[1, vocabulary]`; None: the likeliest one.
        written: ids so far. ended: the base's end came after them. overtaken: how many requests that came later have
            begun before it.
    """

    ids: list[int]
    adapter: str | None
    limit: int
    draw: Callable[[torch.Tensor], torch.Tensor] | None = None
    written: list[int] = field(default_factory=list)
    ended: bool = False
    overtaken: int = 0

    @property
    def tokens(self) -> int:
        """That it holds."""
        return len(self.ids) + len(self.written)

    @property
    def left(self) -> int:
        """Tokens that it may still write."""
        return 0 if self.ended else self.limit - len(self.written)


def peak_tokens(requests: Sequence[Request]) -> int:
    """The most tokens that are held at once if each request writes all that it may.

    The most are held just before one of them ends: then those that have as much left, or more, have all grown by what
    that one has left. With requests by what they have left, most first: max over i of (i · leftᵢ + Σ tokens to i).
    """
    peak = held = 0
    for count, request in enumerate(sorted(requests, key=lambda one: -one.left), 1):
        held += request.tokens
        peak = max(peak, held + count * request.left)
    return peak


class Scheduler:
    """First come, first served; only where the number of adapters at once is at its limit, requests for those that are
    there may overtake, at most `PATIENCE` of them each.

    Args:
        pages: of the pool. token_pages: of a token's keys and values. adapter_pages: of an adapter, by its name.
        most_adapters, most_rows: adapters and requests that run at once.
    """

    def __init__(
        self,
        pages: int,
        token_pages: int,
        adapter_pages: Callable[[str | None], int],
        most_adapters: int,
        most_rows: int,
    ):
        self.pages, self.token_pages, self.adapter_pages = pages, token_pages, adapter_pages
        self.most_adapters, self.most_rows = most_adapters, most_rows
        self.waiting: list[Request] = []
        self.running: list[Request] = []

    def pages_needed(self, requests: Sequence[Request]) -> int:
        """The most that these requests and their adapters ever take together."""
        adapters = {request.adapter for request in requests}
        return self.token_pages * peak_tokens(requests) + sum(map(self.adapter_pages, adapters))

    def submit(self, request: Request) -> None:
        """Raises:
        InputError: it has no room even alone, so it would wait for ever.
        """
        if (needed := self.pages_needed([request])) > self.pages:
            what, fix = "the request has no room in the pool", "write less, or give the pool more pages"
            raise InputError("request", what, f"{needed} pages", f"at most {self.pages}", fix, "pool_full")
        self.waiting.append(request)

    def admit(self) -> list[Request]:
        """Requests that begin now; they are `running` from here on."""
        admitted: list[Request] = []
        passed: list[Request] = []  # that wait for an adapter's place
        for request in list(self.waiting):
            if len(self.running) == self.most_rows or self.pages_needed([*self.running, request]) > self.pages:
                break
            adapters = {one.adapter for one in (*self.running, request)} - {None}
            if len(adapters) > self.most_adapters:
                passed.append(request)
                continue
            if any(one.overtaken >= PATIENCE for one in passed):
                break
            for one in passed:
                one.overtaken += 1
            self.waiting.remove(request)
            self.running.append(request)
            admitted.append(request)
        return admitted

    def end(self, request: Request) -> None:
        """It has written all, or is not wanted any more."""
        queue = self.running if request in self.running else self.waiting
        queue.remove(request)
