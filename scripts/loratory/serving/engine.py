"""Requests for many adapters of a causal base, answered as they come: rows join and leave between two steps.

Keys, values and adapters share one pool. Prompts are read in passes of their own; all that runs then writes token
after token in steps that a GPU replays (`steps`), while adapters of requests that wait are copied (`paging`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import DynamicCache, PretrainedConfig

from loratory.bases.decoding import Sampling
from loratory.bases.families.causal import Family
from loratory.errors import InputError
from loratory.mixers.generation import check_attention
from loratory.mixers.store import open_as_adapter
from loratory.registry import unknown_name_error
from loratory.serving.paging import PagedAdapters
from loratory.serving.pool import PagePool, upload_numbers
from loratory.serving.scheduling import Request, Scheduler
from loratory.serving.steps import PromptLayer, Rows, Steps

PASS_TOKENS = 16384  # of prompts that are read at once
AHEAD = 4  # adapters that begin to be copied in a step: as many as a GPU's step has time for


class Engine:
    """A causal base that serves many adapters.

    Args:
        folders: {name: folder of an adapter, or of a mixture that is one}.
        pages: of the pool, each as large as a token's keys in one layer.
        most_adapters, most_rows: that run at once. capture: see `Steps`.

    Raises:
        InputError: the base's attention is not full, or an adapter is of another base or cannot be served.
    """

    def __init__(
        self,
        base: Family,
        folders: Mapping[str, Path | str],
        pages: int,
        most_adapters: int = 32,
        most_rows: int = 64,
        capture: bool | None = None,
    ):
        config, self.base = base.model.config, base
        check_attention(config)
        self.pool = PagePool(pages, page_width(config), next(base.model.parameters()))
        opened = {folder: open_as_adapter(folder, base.fingerprint) for folder in {*map(str, folders.values())}}
        adapters = {name: opened[str(folder)] for name, folder in folders.items()}
        self.adapters = PagedAdapters(base.model, adapters, folders, self.pool)
        self.steps = Steps(base.model, self.pool, self.adapters.context, most_rows, base.context, capture)
        needed = self.adapters.pages_needed
        self.scheduler = Scheduler(pages, self.steps.parts, needed, most_adapters, most_rows)
        self.free_seats = list(range(most_rows))
        self.seats: dict[Request, int] = {}
        self.next_pages: dict[Request, np.ndarray] = {}

    def submit(self, ids: Sequence[int], adapter: str | None, limit: int, sampling: Sampling | None = None) -> Request:
        """A request that waits for its turn; it is greedy without `sampling`.

        Raises:
        InputError: no such adapter, nothing to continue, more than the base has positions for, or no room even for
            this request alone.
        """
        if adapter is not None and adapter not in self.adapters.adapters:
            raise unknown_name_error("request", "adapter", adapter, self.adapters.adapters)
        if not ids or limit < 1:
            raise InputError("request", "nothing to continue", f"{len(ids)} tokens, {limit} to write")
        if len(ids) + limit > self.base.context:
            raise InputError("request", "too long", f"{len(ids)} + {limit} tokens", f"at most {self.base.context}")
        draw = sampling.token_draw(self.base.device) if sampling else None
        request = Request([*ids], adapter, limit, draw)
        self.scheduler.submit(request)
        return request

    def kill(self, request: Request) -> None:
        """Ends a request, wherever it is; its pages are free."""
        self.scheduler.end(request)
        if request in self.seats:
            self.free_seats.append(self.seats.pop(request))
            self.next_pages.pop(request, None)
            self.pool.release(request)
            if request.adapter is not None:
                self.adapters.give_back(request.adapter)

    def run(self) -> None:
        """Steps until all requests are answered."""
        while self.scheduler.waiting or self.scheduler.running:
            self.step()

    @torch.no_grad()
    def step(self) -> list[Request]:
        """One token for every request that runs, and for those that begin; returns those that end.

        A GPU is asked for all passes before one token is read; while it computes, the next step is prepared, and
        adapters of requests that wait are sent on their way.
        """
        self.adapters.await_steps()
        going_on = self.by_adapter(self.scheduler.running)
        passes = [(going_on, *self.write_tokens(going_on))] if going_on else []
        begun = self.scheduler.admit()
        for one in begun:
            if one.adapter is not None:
                self.adapters.claim(one.adapter)
            self.seats[one] = self.free_seats.pop()
        passes += [(part, *self.read_prompts(part)) for part in cut_prompts(begun, PASS_TOKENS)]
        going_on = [row for rows, *_ in passes for row in rows if row.left > 1]
        self.next_pages = dict(zip(going_on, self.new_pages(going_on, 1)[..., 0])) if going_on else {}
        self.adapters.fetch_ahead((one.adapter for one in self.scheduler.waiting if one.adapter is not None), AHEAD)
        for rows, tokens, logits in passes:
            draw_instead(rows, tokens, logits)
            for row, token in zip(rows, tokens.tolist()):
                if token == self.base.end_id:
                    row.ended = True
                else:
                    row.written.append(token)
        ended = [one for one in self.scheduler.running if not one.left]
        for request in ended:
            self.kill(request)
        return ended

    def by_adapter(self, rows: Sequence[Request]) -> list[Request]:
        return sorted(rows, key=lambda row: self.adapters.place(row.adapter))

    def new_pages(self, requests: Sequence[Request], tokens: int) -> np.ndarray:
        """Pages `[requests, 2 · layers, tokens]` of so many next tokens of each."""
        count = tokens * self.steps.parts
        self.adapters.make_room(len(requests) * count)
        return self.pool.allocate_each(requests, count).reshape(len(requests), -1, tokens)

    def write_tokens(self, requests: Sequence[Request]) -> tuple[torch.Tensor, torch.Tensor]:
        """The likeliest next token of each request, sorted by adapter, that has one which was not read yet, and its
        logits."""
        self.adapters.check_resident([request.adapter for request in requests])
        place = self.adapters.place
        numbers = [(one.written[-1], one.tokens - 1, self.seats[one], place(one.adapter)) for one in requests]
        pages = np.stack([self.next_pages[one] for one in requests])
        return self.steps.run(Rows(np.array(numbers, np.int32), pages))

    def read_prompts(self, requests: list[Request]) -> tuple[torch.Tensor, torch.Tensor]:
        """The likeliest first token of each request, and its logits; the list is sorted by adapter."""
        requests.sort(key=lambda row: self.adapters.place(row.adapter))
        owned = []
        for one in requests:
            if one.adapter is not None:
                self.adapters.bring(one.adapter)
            owned.append(self.new_pages([one], len(one.ids))[0])
        numbers = pad_left([np.array(one.ids, np.int32) for one in requests]), pad_left(owned)
        taken = np.array([self.seats[one] for one in requests], np.int32)
        ids, pages, seats = upload_numbers([*numbers, taken], self.pool.vectors.device)
        real = pages[:, 0] > 0
        self.steps.put_prompts(seats, pages, real)
        cache = DynamicCache()
        by_layer = pages.long().transpose(0, 1).reshape(-1, 2, ids.numel())
        cache.layers = [PromptLayer(self.pool, each) for each in by_layer]
        with self.adapters.use_rows([one.adapter for one in requests]):
            logits = (
                self.base.model(
                    input_ids=ids,
                    position_ids=(real.cumsum(-1) - 1).clamp(min=0),
                    attention_mask=causal_mask(real, self.base.model.dtype),
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                )
                .logits[:, -1]
                .float()
            )
        return logits.argmax(-1), logits

    def close(self) -> None:
        """Takes all adapters off the base."""
        self.adapters.remove()


def page_width(config: PretrainedConfig) -> int:
    """Numbers of a page: a token's keys in one layer."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return heads * (getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def draw_instead(rows: Sequence[Request], tokens: torch.Tensor, logits: torch.Tensor) -> None:
    """Puts what rows draw by their logits `[rows, vocabulary]`, each as if it were alone, in place of their likeliest
    tokens `[rows]`."""
    for place, row in enumerate(rows):
        if row.draw:
            tokens[place : place + 1] = row.draw(logits[place : place + 1])


def pad_left(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Arrays `[…, length]` as one `[parts, …, longest]`, zeros on the left."""
    found = np.zeros((len(parts), *parts[0].shape[:-1], max(part.shape[-1] for part in parts)), parts[0].dtype)
    for one, part in zip(found, parts):
        one[..., found.shape[-1] - part.shape[-1] :] = part
    return found


def causal_mask(real: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`[rows, 1, length, length]` to be added to attention: each position sees itself and what is real before it; one
    that is not real sees itself alone, so that nothing is divided by nothing."""
    length = real.shape[1]
    before = torch.ones(length, length, dtype=torch.bool, device=real.device).tril()
    seen = before & real[:, None] | torch.eye(length, dtype=torch.bool, device=real.device)
    return torch.zeros(seen.shape, dtype=dtype, device=real.device).masked_fill(~seen, torch.finfo(dtype).min)[:, None]


def cut_prompts(requests: Sequence[Request], most: int) -> list[list[Request]]:
    """Requests for one pass each: the shortest first, at most so many padded tokens together, or one request."""
    found: list[list[Request]] = []
    for request in sorted(requests, key=lambda one: len(one.ids)):
        if not found or (len(found[-1]) + 1) * len(request.ids) > most:
            found.append([])
        found[-1].append(request)
    return found
