"""Attention of a step's tokens to keys and values where they lie: an attention function that Transformers calls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import cast

import torch
from transformers import AttentionInterface, PretrainedConfig

NAME = "loratory_pages"


@dataclass(frozen=True)
class PagedTexts:
    """The texts of a step's rows.

    Attributes:
        vectors: `[pages, heads of keys · size]`. table: `[seats, 2 · layers, length]` int32: the pages of each token's
            keys and values. seats, positions: `[rows]` int32: whose a row's text is, and the place of its last token.
    """

    vectors: torch.Tensor
    table: torch.Tensor
    seats: torch.Tensor
    positions: torch.Tensor


CURRENT: ContextVar[PagedTexts] = ContextVar("texts of the step that runs")


@contextmanager
def attend_to_pages(config: PretrainedConfig, texts: PagedTexts) -> Iterator[None]:
    """Inside, the model of this config reads keys and values of all tokens from pages, also those of the newest."""
    before, token = config._attn_implementation, CURRENT.set(texts)
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
        CURRENT.reset(token)


def attend_step(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **options: object,
) -> tuple[torch.Tensor, None]:
    """Queries `[rows, heads, 1, size]` → `[rows, 1, heads, size]`; keys and values are those of the new token."""
    from loratory.serving.kernels import attend_rows

    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    found = attend_rows(query[:, :, 0], CURRENT.get(), cast(int, module.layer_idx), key.shape[1], scale)
    return found[:, None], None


AttentionInterface.register(NAME, attend_step)
