"""Triton kernels that read pages: changes of rows of many adapters, h = x Aᵀ and y += h B, and attention of steps.

What Punica and S-LoRA call BGMV and SGMV is here one pair: a program computes a tile of rows of one adapter, be it a
row that decodes or a part of a prompt. A and s Bᵀ are read from the pages where they lie; page 0 is zero and not read,
so an adapter costs its own rank, not the highest. Attention is computed for each row and head of keys, by blocks of
tokens (the online softmax of FlashAttention, Dao et al. 2022, arXiv:2205.14135), over as many as the row has. Sums are
in fp32, of fp32 factors without TF32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from loratory.serving.attention import PagedTexts
from loratory.serving.pool import Pages
from loratory.serving.rows import Tiles

PROGRAMS = 512  # that a GPU has work for: with fewer tiles, several programs share the inputs of one
MOST_RANKS = 64  # of a program
VARYING = ["rows", "splits", "bounds_stride"]  # between batches; each kind of value would be compiled anew


@triton.jit(do_not_specialize=VARYING)
def shrink_rows(
    x: tl.tensor,
    bounds: tl.tensor,
    table: tl.tensor,
    vectors: tl.tensor,
    inner: tl.tensor,
    rows: int,
    size: int,
    rank: int,
    width: int,
    pages: int,
    page_blocks: int,
    bounds_stride: int,
    table_stride: int,
    splits: int,
    TILE: tl.constexpr,
    RANKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """inner[split] = the part of x Aᵀ that every so manyth block of inputs gives."""
    tile, split, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first = tl.load(bounds + tile * bounds_stride + 1)
    last = tl.load(bounds + tile * bounds_stride + 2)
    if first >= last:
        return
    place = tl.load(bounds + tile * bounds_stride).to(tl.int64)
    row = (first + tl.arange(0, TILE)).to(tl.int64)
    ranks = part * RANKS + tl.arange(0, RANKS)
    lines = table + place * table_stride + ranks * pages
    total = tl.zeros((TILE, RANKS), dtype=tl.float32)
    for block in range(split, pages * page_blocks, splits):
        page_of, start = block // page_blocks, (block % page_blocks) * BLOCK
        page = tl.load(lines + page_of, mask=ranks < rank, other=0).to(tl.int64)
        inside = start + tl.arange(0, BLOCK)
        column = page_of * width + inside
        real = (inside < width) & (column < size)
        of_x = (row[:, None] < last) & real[None, :]
        of_a = (page[:, None] > 0) & real[None, :]
        values = tl.load(x + row[:, None] * size + column[None, :], mask=of_x, other=0.0)
        a = tl.load(vectors + page[:, None] * width + inside[None, :], mask=of_a, other=0.0)
        total += tl.dot(values, tl.trans(a.to(values.dtype)), input_precision="ieee")
    across = tl.num_programs(2) * RANKS
    to = inner + split * rows * across + row[:, None] * across + ranks[None, :]
    tl.store(to, total, mask=(row[:, None] < last) & (ranks[None, :] < across))


@triton.jit(do_not_specialize=VARYING)
def expand_rows(
    inner: tl.tensor,
    bounds: tl.tensor,
    table: tl.tensor,
    vectors: tl.tensor,
    y: tl.tensor,
    rows: int,
    size: int,
    rank: int,
    width: int,
    pages: int,
    page_blocks: int,
    bounds_stride: int,
    table_stride: int,
    splits: int,
    parts: int,
    TILE: tl.constexpr,
    RANKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """y += (the sum of all splits of inner) B, of a block of outputs."""
    tile, block = tl.program_id(0), tl.program_id(1)
    first = tl.load(bounds + tile * bounds_stride + 1)
    last = tl.load(bounds + tile * bounds_stride + 2)
    if first >= last:
        return
    place = tl.load(bounds + tile * bounds_stride).to(tl.int64)
    row = (first + tl.arange(0, TILE)).to(tl.int64)
    page_of, start = block // page_blocks, (block % page_blocks) * BLOCK
    inside = start + tl.arange(0, BLOCK)
    column = page_of * width + inside
    real = (inside < width) & (column < size)
    across = parts * RANKS
    change = tl.zeros((TILE, BLOCK), dtype=tl.float32)
    for part in range(parts):
        ranks = part * RANKS + tl.arange(0, RANKS)
        h = tl.zeros((TILE, RANKS), dtype=tl.float32)
        for split in range(splits):
            at = inner + split * rows * across + row[:, None] * across + ranks[None, :]
            h += tl.load(at, mask=row[:, None] < last, other=0.0)
        lines = table + place * table_stride + ranks * pages
        page = tl.load(lines + page_of, mask=ranks < rank, other=0).to(tl.int64)
        of_b = (page[:, None] > 0) & real[None, :]
        b = tl.load(vectors + page[:, None] * width + inside[None, :], mask=of_b, other=0.0)
        change += tl.dot(h.to(b.dtype), b, input_precision="ieee")
    to = y + row[:, None] * size + column[None, :]
    of_y = (row[:, None] < last) & real[None, :]
    before = tl.load(to, mask=of_y, other=0.0)
    tl.store(to, (before.to(tl.float32) + change).to(before.dtype), mask=of_y)


def add_changes(y: torch.Tensor, x: torch.Tensor, tiles: Tiles, a: Pages, b: Pages) -> torch.Tensor:
    """y `[rows, out]`, in place, and s (x Aᵀ) Bᵀ of x `[rows, in]`; rows of no tile stay."""
    rows, count, rank = len(x), len(tiles.bounds), a.table.shape[1]
    ranks = min(MOST_RANKS, max(16, triton.next_power_of_2(rank)))
    parts = triton.cdiv(rank, ranks)
    widest = 64 if x.dtype == torch.float32 else 128
    blocks = [min(widest, max(16, triton.next_power_of_2(pages.width))) for pages in (a, b)]
    (a_blocks, b_blocks) = [triton.cdiv(pages.width, block) for pages, block in zip((a, b), blocks)]
    work = a.table.shape[2] * a_blocks
    splits = max(1, min(PROGRAMS // count, work // 2))
    inner = torch.empty(splits, rows, parts * ranks, dtype=torch.float32, device=x.device)
    shapes = {"TILE": tiles.rows, "RANKS": ranks}
    strides = tiles.bounds.stride(0), a.table.stride(0)
    sizes = rows, a.size, rank, a.width, a.table.shape[2], a_blocks
    with torch.cuda.device_of(x):
        shrink_rows[count, splits, parts](
            x, tiles.bounds, a.table, a.vectors, inner, *sizes, *strides, splits, **shapes, BLOCK=blocks[0]
        )
    sizes = rows, b.size, rank, b.width, b.table.shape[2], b_blocks
    strides = tiles.bounds.stride(0), b.table.stride(0)
    with torch.cuda.device_of(x):
        expand_rows[count, b.table.shape[2] * b_blocks](
            inner, tiles.bounds, b.table, b.vectors, y, *sizes, *strides, splits, parts, **shapes, BLOCK=blocks[1]
        )
    return y


@triton.jit
def attend_head(
    query: tl.tensor,
    vectors: tl.tensor,
    table: tl.tensor,
    seats: tl.tensor,
    positions: tl.tensor,
    out: tl.tensor,
    scale: float,
    group: int,
    size: int,
    width: int,
    length: int,
    line: int,
    seat_stride: int,
    row_stride: int,
    GROUP: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out = softmax(scale q Kᵀ) V of a row's queries that share a head of keys."""
    row, head = tl.program_id(0), tl.program_id(1)
    seat = tl.load(seats + row * row_stride).to(tl.int64)
    last = tl.load(positions + row * row_stride) + 1
    lines = table + seat * seat_stride + line * length
    member, column = tl.arange(0, GROUP), tl.arange(0, SIZE)
    at = ((row * tl.num_programs(1) + head) * group + member)[:, None] * size + column[None, :]
    real = (column < size)[None, :]
    of_query = (member < group)[:, None] & real
    q = tl.load(query + at, mask=of_query, other=0.0)
    most = tl.full((GROUP,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((GROUP,), dtype=tl.float32)
    found = tl.zeros((GROUP, SIZE), dtype=tl.float32)
    for start in range(0, last, BLOCK):
        token = start + tl.arange(0, BLOCK)
        there = token < last
        of_token = there[:, None] & real
        inside = head * size + column[None, :]
        page = tl.load(lines + token, mask=there, other=0).to(tl.int64)
        k = tl.load(vectors + page[:, None] * width + inside, mask=of_token, other=0.0)
        scores = tl.dot(q, tl.trans(k.to(q.dtype)), input_precision="ieee") * scale
        scores = tl.where(there[None, :], scores, float("-inf"))
        higher = tl.maximum(most, tl.max(scores, 1))
        share, kept = tl.exp(scores - higher[:, None]), tl.exp(most - higher)
        page = tl.load(lines + length + token, mask=there, other=0).to(tl.int64)
        v = tl.load(vectors + page[:, None] * width + inside, mask=of_token, other=0.0)
        found = found * kept[:, None] + tl.dot(share.to(v.dtype), v, input_precision="ieee")
        total = total * kept + tl.sum(share, 1)
        most = higher
    tl.store(out + at, (found / total[:, None]).to(q.dtype), mask=of_query)


def attend_rows(query: torch.Tensor, texts: PagedTexts, layer: int, heads: int, scale: float) -> torch.Tensor:
    """Attention `[rows, heads of queries, size]` of each row's query to all tokens of its text in a layer.

    Args:
        heads: of keys and values.
    """
    query = query.contiguous()
    rows, queries, size = query.shape
    out, group = torch.empty_like(query), queries // heads
    places = texts.seats.stride(0), texts.table.stride(0)
    with torch.cuda.device_of(query):
        attend_head[rows, heads](
            query,
            texts.vectors,
            texts.table,
            texts.seats,
            texts.positions,
            out,
            scale,
            group,
            size,
            texts.vectors.shape[1],
            texts.table.shape[2],
            2 * layer,
            places[1],
            places[0],
            GROUP=max(16, triton.next_power_of_2(group)),
            SIZE=max(16, triton.next_power_of_2(size)),
            BLOCK=32 if query.dtype == torch.float32 else 64,
        )
    return out
