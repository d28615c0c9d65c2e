"""Requests for many adapters of a causal base, answered as they come: rows join and leave between two steps.

Keys, values and adapters share one pool. Everything is read from its pages by plain PyTorch, which is exact and the
measure for kernels to come; it copies what it reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from transformers import DynamicCache, DynamicLayer, PretrainedConfig

from loratory.bases.decoding import Sampling
from loratory.bases.families.causal import Family
from loratory.errors import InputError
from loratory.mixers.generation import check_attention
from loratory.mixers.store import open_as_adapter
from loratory.registry import unknown_name_error
from loratory.serving.paging import PagedAdapters
from loratory.serving.pool import PagePool
from loratory.serving.scheduling import Request, Scheduler


class PagedLayer(DynamicLayer):
    """Keys and values of a layer for one pass, in pages.

    Args:
        places: pages of keys and of values `[2, rows, length]`, those of new tokens last; 0 where nothing is, on the
            left.
    """

    def __init__(self, pool: PagePool, places: torch.Tensor):
        super().__init__()
        self.pool, self.places, self.is_initialized = pool, places, True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes the new ones `[rows, heads, new, size]`, and returns all `[rows, heads, length, size]`."""
        found = []
        for places, states in zip(self.places, (key_states, value_states)):
            new = places[:, -states.shape[2] :]
            real = new > 0
            self.pool.write(new[real][:, None], states.transpose(1, 2).flatten(2)[real])
            read = self.pool.read(places[..., None], states.shape[1] * states.shape[3])
            found.append(read.unflatten(-1, (states.shape[1], -1)).transpose(1, 2))
        return found[0], found[1]


class Engine:
    """A causal base that serves many adapters.

    Args:
        folders: {name: folder of an adapter, or of a mixture that is one}.
        pages: of the pool, each as large as a token's keys in one layer.
        most_adapters: that run at once.

    Raises:
        InputError: the base's attention is not full, or an adapter is of another base or cannot be served.
    """

    def __init__(self, base: Family, folders: Mapping[str, Path | str], pages: int, most_adapters: int = 32):
        config, self.base = base.model.config, base
        check_attention(config)
        self.pool = PagePool(pages, page_width(config), next(base.model.parameters()))
        adapters = {name: open_as_adapter(folder, base.fingerprint) for name, folder in folders.items()}
        self.adapters = PagedAdapters(base.model, adapters, folders, self.pool)
        self.token_pages = 2 * config.num_hidden_layers
        self.scheduler = Scheduler(pages, self.token_pages, self.adapters.pages_needed, most_adapters)
        self.places: dict[Request, torch.Tensor] = {}

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
        if self.places.pop(request, None) is not None:
            self.pool.release(request)
            if request.adapter is not None:
                self.adapters.give_back(request.adapter)

    def run(self) -> None:
        """Steps until all requests are answered."""
        while self.scheduler.waiting or self.scheduler.running:
            self.step()

    @torch.no_grad()
    def step(self) -> list[Request]:
        """One token for every request that runs, and for those that begin; returns those that end."""
        going_on = list(self.scheduler.running)
        begun = self.scheduler.admit()
        for request in begun:
            if request.adapter is not None:
                self.adapters.take(request.adapter)
            self.places[request] = self.pool.allocate(request, 0).view(self.token_pages // 2, 2, 0)
        for rows in filter(None, (going_on, begun)):
            self.write_tokens(sorted(rows, key=lambda row: self.adapters.place(row.adapter)))
        ended = [one for one in self.scheduler.running if not one.left]
        for request in ended:
            self.kill(request)
        return ended

    def new_places(self, request: Request, tokens: int) -> torch.Tensor:
        """Pages `[layers, 2, tokens]` of a request's next tokens."""
        self.adapters.make_room(tokens * self.token_pages)
        return self.pool.allocate(request, tokens * self.token_pages).view(-1, 2, tokens)

    def write_tokens(self, rows: Sequence[Request]) -> None:
        """A pass for rows that all read their prompts, or all their latest tokens."""
        new = [row.written[-1:] or row.ids for row in rows]
        for row, own in zip(rows, new):
            self.places[row] = torch.cat([self.places[row], self.new_places(row, len(own))], -1)
        places = pad_left([self.places[row] for row in rows])  # [rows, layers, 2, length]
        ids = pad_left([torch.tensor(own, device=places.device) for own in new])
        cache = DynamicCache()
        cache.layers = [PagedLayer(self.pool, each) for each in places.permute(1, 2, 0, 3)]
        real = places[:, 0, 0] > 0
        positions = (real.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        mask = causal_mask(real, ids.shape[1], self.base.model.dtype)
        with self.adapters.use_rows([row.adapter for row in rows]):
            logits = self.base.model(
                input_ids=ids,
                position_ids=positions,
                attention_mask=mask,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
        for row, token in zip(rows, choose_tokens(rows, logits.float())):
            if token == self.base.end_id:
                row.ended = True
            else:
                row.written.append(token)

    def close(self) -> None:
        """Takes all adapters off the base."""
        self.adapters.remove()


def page_width(config: PretrainedConfig) -> int:
    """Numbers of a page: a token's keys in one layer."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return heads * (getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def choose_tokens(rows: Sequence[Request], logits: torch.Tensor) -> list[int]:
    """The next token of each row, by logits `[rows, vocabulary]`: as if the row were alone."""
    tokens = logits.argmax(-1)
    for place, row in enumerate(rows):
        if row.draw:
            tokens[place : place + 1] = row.draw(logits[place : place + 1])
    return tokens.tolist()


def pad_left(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Tensors `[…, length]` as one `[parts, …, longest]`, zeros on the left."""
    longest = max(part.shape[-1] for part in parts)
    return torch.stack([torch.nn.functional.pad(part, (longest - part.shape[-1], 0)) for part in parts])


def causal_mask(real: torch.Tensor, new: int, dtype: torch.dtype) -> torch.Tensor:
    """`[rows, 1, new, length]` to be added to attention: each of the last `new` positions sees itself and what is real
    before it; a position that is not real sees itself alone, so that nothing is divided by nothing."""
    length = real.shape[1]
    before = torch.ones(new, length, dtype=torch.bool, device=real.device).tril(length - new)
    seen = before & real[:, None] | torch.eye(length, dtype=torch.bool, device=real.device)[-new:]
    return torch.zeros(seen.shape, dtype=dtype, device=real.device).masked_fill(~seen, torch.finfo(dtype).min)[:, None]
