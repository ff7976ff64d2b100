"""Decode attention on a GPU: single tokens against the paged keys and values of their rows.

A tile is (token, row, kv_len, split, base): the keys split * SPLIT .. of its row; base numbers the token's first split.
One program takes one tile and one kv head; the query heads that share the kv head are the rows of its matrix products,
padded to 16. Programs stay and draw the next pair from a queue.

        keys of one row   |---- split 0 ----|---- split 1 ----|-- split 2 --|
        turns of a tile   |BLOCK_N|BLOCK_N..|                               kv_len
        scores            [16, BLOCK_N] = query heads [16, head_dim] . keys, then an online softmax (arXiv 1805.02867)

A token of one split is done there. Otherwise each split leaves its highest score, total and sums in the workspace, and
the one that arrives last adds them up, in the order of the splits: the result does not depend on who was last.

On an H100, of its copy bandwidth of 3.03 TB/s: 256 sequences of 900 keys 93 %, 128 of 129 to 384 85 %, 32 of 256 73 %.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.cuda.launch import gdc_launch_dependents, gdc_wait
from engine.cuda.paged import (
    LOG2_E,
    LOWEST,
    NO_WINDOW,
    absorb,
    launched,
    load_rows,
    look_up,
    place_type,
    programs,
    turned,
)
from engine.cuda.tiles import SPLIT, SPLIT_AT, TILE_INTS
from engine.kvcache import LayerKV

PROGRAMS_PER_SM = 4  # as many as registers hold
OPTIONS = {  # by bytes of a number; up to 32 tokens, and for more
    2: ({"BLOCK_N": 32, "num_warps": 4, "num_stages": 3}, {"BLOCK_N": 64, "num_warps": 2, "num_stages": 2}),
    4: ({"BLOCK_N": 32, "num_warps": 4, "num_stages": 2},) * 2,
}


@dataclass(frozen=True, slots=True)
class Rope:
    """What engine/cuda/rope.py does to q and k, to be done where they are read."""

    cos: Tensor  # [max_len, head_dim / 2]
    sin: Tensor
    q_norm: Tensor | None  # [head_dim]
    k_norm: Tensor | None
    eps: float
    rotates: bool


@dataclass(frozen=True, slots=True)
class Workspace:
    """What the splits of one token leave for the last of them. Layers run one after another and share it."""

    sums: Tensor  # [max_tiles, heads, head_dim] float32
    highest: Tensor  # [max_tiles, heads] float32
    totals: Tensor  # [max_tiles, heads] float32
    arrived: Tensor  # [max_tokens, kv_heads] int32: splits of each token that are done; zero between launches
    queue: Tensor  # [1] int32: what programs have drawn; zero between launches


def workspace(max_tiles: int, max_tokens: int, heads: int, kv_heads: int, head_dim: int, device: Any) -> Workspace:
    sums = torch.zeros(max_tiles, heads, head_dim, dtype=torch.float32, device=device)
    highest = torch.zeros(max_tiles, heads, dtype=torch.float32, device=device)
    arrived = torch.zeros(max_tokens, kv_heads, dtype=torch.int32, device=device)
    queue = torch.zeros(1, dtype=torch.int32, device=device)
    return Workspace(sums, highest, torch.zeros_like(highest), arrived, queue)


def decode_attention(
    q: Tensor,
    cache: LayerKV,
    block_tables: Tensor,
    tiles: Tensor,
    counts: Tensor,
    out: Tensor,
    workspace: Workspace,
    scale: float,
    window: int | None,
    rope: Rope | None = None,
    overlap: bool = False,
    options: dict[str, int] | None = None,
    programs_per_sm: int = PROGRAMS_PER_SM,
) -> None:
    """q: [tokens, heads, head_dim], contiguous but for its first stride; block_tables: [rows, max_blocks]; tiles:
    [>= counts[1], TILE_INTS]; counts: [8]; out: [tokens, heads, head_dim], written where there are tiles. All integers
    int32. rope: q is neither normed nor rotated yet, and in its rows keys and values follow that are not in the cache
    yet; the program that sees a token's last key writes them there."""
    kv_heads, block_size, head_dim = cache.keys.shape[1:]
    group = q.shape[1] // kv_heads
    _decode[(programs(q.device, programs_per_sm),)](
        q,
        cache.keys,
        cache.values,
        block_tables,
        tiles,
        counts,
        out,
        workspace.sums,
        workspace.highest,
        workspace.totals,
        workspace.arrived,
        workspace.queue,
        scale * LOG2_E,
        window or NO_WINDOW,
        q.stride(0),
        block_tables.stride(0),
        *((rope.cos, rope.sin, rope.q_norm, rope.k_norm, rope.eps) if rope is not None else (None,) * 5),
        FRESH=rope is not None,
        ROPE=rope is not None and rope.rotates,
        GROUP=group,
        ROWS=max(16, triton.next_power_of_2(group)),
        KV_HEADS=kv_heads,
        BLOCK_SIZE=block_size,
        HEAD_DIM=head_dim,
        WIDTH=triton.next_power_of_2(head_dim),
        SPLIT=SPLIT,
        SPLIT_AT=SPLIT_AT,
        TILE_INTS=TILE_INTS,
        PLACE=place_type(cache),
        OVERLAP=overlap,
        **launched(options or OPTIONS[q.element_size()][len(q) > 32], overlap),
    )


@triton.jit(do_not_specialize=["window"])
def _decode(
    q,
    keys,
    values,
    tables,
    tiles,
    counts,
    out,
    sums,
    highest,
    totals,
    arrived,
    queue,
    scale,  # of scores, times log2(e)
    window,
    q_stride,
    table_stride,
    cos,
    sin,
    q_norm,
    k_norm,
    eps,
    FRESH: tl.constexpr,  # q, k and v come as the product left them
    ROPE: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,  # GROUP, padded
    KV_HEADS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,  # HEAD_DIM, padded
    SPLIT: tl.constexpr,
    SPLIT_AT: tl.constexpr,
    TILE_INTS: tl.constexpr,
    PLACE: tl.constexpr,  # type of indices into keys and values
    BLOCK_N: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    if OVERLAP:
        gdc_launch_dependents()
    programs = tl.num_programs(0)
    items = tl.load(counts + 1) * KV_HEADS
    told = tl.load(counts + SPLIT_AT)
    size = tl.where(told > 0, told, SPLIT)
    member, lane = tl.arange(0, ROWS), tl.arange(0, WIDTH)
    real = member < GROUP
    inside = real[:, None] & (lane < HEAD_DIM)[None, :]
    item = tl.program_id(0)
    while item < items:
        tile, head = item // KV_HEADS, item % KV_HEADS
        record = tiles + tile * TILE_INTS
        t = tl.load(record)
        table = tables + tl.load(record + 1) * table_stride
        kv_len = tl.load(record + 2)
        split = tl.load(record + 3)
        base = tl.load(record + 4)
        first = tl.maximum(kv_len - window, 0)
        start = tl.maximum(split * size, first)
        end = tl.minimum(split * size + size, kv_len)
        block = look_up(table, start + tl.arange(0, BLOCK_N), end, BLOCK_SIZE)
        if OVERLAP:
            gdc_wait()  # what was loaded so far came with the step, not from the kernel before this one
        heads = head * GROUP + member
        if FRESH:
            row = q + t * q_stride
            turn = (kv_len - 1).to(tl.int64) * (HEAD_DIM // 2)
            query = turned(
                row + heads[:, None] * HEAD_DIM,
                lane[None, :],
                inside,
                q_norm,
                cos + turn,
                sin + turn,
                eps,
                ROPE,
                HEAD_DIM,
            )
            if end == kv_len:
                last = kv_len - 1
                held = tl.load(table + last // BLOCK_SIZE).to(PLACE)
                place = ((held * KV_HEADS + head) * BLOCK_SIZE + last % BLOCK_SIZE) * HEAD_DIM + lane[None, :]
                row += (KV_HEADS * GROUP + head) * HEAD_DIM
                there = (lane < HEAD_DIM)[None, :]
                k = turned(row, lane[None, :], there, k_norm, cos + turn, sin + turn, eps, ROPE, HEAD_DIM)
                tl.store(keys + place, k, mask=there)
                tl.store(values + place, tl.load(row + KV_HEADS * HEAD_DIM + lane[None, :], mask=there), mask=there)
                tl.debug_barrier()  # all threads will read them
        else:
            query = tl.load(q + t * q_stride + heads[:, None] * HEAD_DIM + lane[None, :], mask=inside, other=0)
        item = _take(queue, items, programs)
        if start < end:  # and not left of the window
            top = tl.full([ROWS], LOWEST, tl.float32)
            total = tl.zeros([ROWS], tl.float32)
            summed = tl.zeros([ROWS, WIDTH], tl.float32)
            for n in range(start, end, BLOCK_N):
                key = n + tl.arange(0, BLOCK_N)
                seen = key < end
                places = ((block.to(PLACE) * KV_HEADS + head) * BLOCK_SIZE + key % BLOCK_SIZE) * HEAD_DIM
                block = look_up(table, key + BLOCK_N, end, BLOCK_SIZE)
                k = load_rows(keys, places, seen, lane, HEAD_DIM, WIDTH)
                scores = tl.dot(query, tl.trans(k), input_precision="ieee") * scale
                scores = tl.where(seen[None, :], scores, float("-inf"))
                v = load_rows(values, places, seen, lane, HEAD_DIM, WIDTH)
                top, total, summed = absorb(scores, v, top, total, summed)

            first_split = first // size
            parts = (kv_len + size - 1) // size - first_split
            done = parts == 1
            if parts > 1:
                place = (base + split) * (KV_HEADS * GROUP) + heads
                tl.store(highest + place, top, mask=real)
                tl.store(totals + place, total, mask=real)
                tl.store(sums + place[:, None] * HEAD_DIM + lane[None, :], summed, mask=inside)
                tl.debug_barrier()  # what all threads stored comes before the one thread's release
                counter = arrived + t * KV_HEADS + head
                done = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == parts - 1
                if done:
                    tl.store(counter, 0)
                    place -= (split - first_split) * (KV_HEADS * GROUP)  # of the token's first part
                    at = place[:, None] * HEAD_DIM + lane[None, :]
                    total, summed = _merge(
                        highest + place, totals + place, sums + at, parts, real, inside, KV_HEADS * GROUP, HEAD_DIM
                    )
            if done:
                target = out + (t * (KV_HEADS * GROUP) + heads)[:, None] * HEAD_DIM + lane[None, :]
                tl.store(target, (summed / total[:, None]).to(out.dtype.element_ty), mask=inside)
    if OVERLAP:
        gdc_wait()  # this kernel must not end before the one before it, even with nothing to do


@triton.jit
def _take(queue, items, programs):
    """The next item. Programs begin with one each and draw the rest; the last draw puts the queue back to zero."""
    item = items
    if items > programs:
        drawn = tl.atomic_add(queue, 1, sem="relaxed", scope="gpu")
        if drawn == items - 1:
            tl.store(queue, 0)
        item = drawn + programs
    return item


@triton.jit
def _merge(highest, totals, sums, parts, real, inside, STRIDE: tl.constexpr, HEAD_DIM: tl.constexpr):
    """Total and sums of all parts of a token, which other programs stored: past the first cache, which may be old."""
    top = tl.load(highest, mask=real, other=0, cache_modifier=".cg")
    total = tl.load(totals, mask=real, other=1, cache_modifier=".cg")
    summed = tl.load(sums, mask=inside, other=0, cache_modifier=".cg")
    for part in tl.range(1, parts, loop_unroll_factor=4):
        its_top = tl.load(highest + part * STRIDE, mask=real, other=0, cache_modifier=".cg")
        its_total = tl.load(totals + part * STRIDE, mask=real, other=1, cache_modifier=".cg")
        its_sums = tl.load(sums + part * STRIDE * HEAD_DIM, mask=inside, other=0, cache_modifier=".cg")
        higher = tl.maximum(top, its_top)
        old, new = tl.exp2(top - higher), tl.exp2(its_top - higher)
        total = total * old + its_total * new
        summed = summed * old[:, None] + its_sums * new[:, None]
        top = higher
    return total, summed
