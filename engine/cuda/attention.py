"""Decode attention on a GPU: single tokens against the paged keys and values of their rows.

A tile is (token, split): the keys split * SPLIT .. of the token's row. One program takes one tile and one kv head; the
query heads that share the kv head are the rows of its matrix products, padded to 16. Programs stay and take every
num_programs-th pair.

        keys of one row   |---- split 0 ----|---- split 1 ----|-- split 2 --|
        turns of a tile   |BLOCK_N|BLOCK_N..|                               kv_len
        scores            [16, BLOCK_N] = query heads [16, head_dim] . keys, then an online softmax (arXiv 1805.02867)

A token of one split is done there. Otherwise each split leaves its highest score, total and sums in the workspace, and
the one that arrives last adds them up, in the order of the splits: the result does not depend on who was last.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from engine.kvcache import LayerKV

SPLIT = 256  # keys of a tile
SPLIT_AT = 4  # counts[SPLIT_AT]: keys of a tile in this step, a multiple of 16; 0: SPLIT
PROGRAMS_PER_SM = 3
OPTIONS = {"BLOCK_N": 64, "num_warps": 4, "num_stages": 3}

LOG2_E = 1.4426950408889634
NO_WINDOW = 1 << 30
LOWEST = tl.constexpr(-1e30)  # below every score, and finite: differences of two of them are 0, not NaN


@dataclass(frozen=True, slots=True)
class Workspace:
    """What the splits of one token leave for the last of them. Layers run one after another and share it."""

    sums: Tensor  # [max_tiles, heads, head_dim] float32
    highest: Tensor  # [max_tiles, heads] float32
    totals: Tensor  # [max_tiles, heads] float32
    arrived: Tensor  # [max_tokens, kv_heads] int32, zero between launches


def workspace(max_tiles: int, max_tokens: int, heads: int, kv_heads: int, head_dim: int, device: Any) -> Workspace:
    sums = torch.zeros(max_tiles, heads, head_dim, dtype=torch.float32, device=device)
    highest = torch.zeros(max_tiles, heads, dtype=torch.float32, device=device)
    arrived = torch.zeros(max_tokens, kv_heads, dtype=torch.int32, device=device)
    return Workspace(sums, highest, torch.zeros_like(highest), arrived)


def decode_tiles(tokens: NDArray[Any], kv_lens: NDArray[Any], split: int = SPLIT) -> NDArray[np.int32]:
    """tokens, kv_lens: [n], index of each token and the keys it sees. Returns [tiles, 2]: longest token first, and the
    splits of a token one after another, as the kernel expects."""
    order = np.argsort(-kv_lens, kind="stable")
    splits = -(-kv_lens[order] // split)
    begins = np.cumsum(splits) - splits
    tiles = np.empty((int(splits.sum()), 2), np.int32)
    tiles[:, 0] = np.repeat(tokens[order], splits)
    tiles[:, 1] = np.arange(len(tiles)) - np.repeat(begins, splits)
    return tiles


def decode_attention(
    q: Tensor,
    cache: LayerKV,
    rows: Tensor,
    positions: Tensor,
    block_tables: Tensor,
    tiles: Tensor,
    counts: Tensor,
    out: Tensor,
    workspace: Workspace,
    scale: float,
    window: int | None,
    options: dict[str, int] = OPTIONS,
    programs_per_sm: int = PROGRAMS_PER_SM,
) -> None:
    """q: [tokens, heads, head_dim], contiguous but for its first stride; rows, positions: [tokens]; block_tables:
    [rows, max_blocks]; tiles: [>= counts[1], 2]; counts: [8]; out: [tokens, heads, head_dim], written where there are
    tiles. All integers int32."""
    kv_heads, block_size, head_dim = cache.keys.shape[1:]
    group = q.shape[1] // kv_heads
    _decode[(programs(q.device, programs_per_sm),)](
        q,
        cache.keys,
        cache.values,
        rows,
        positions,
        block_tables,
        tiles,
        counts,
        out,
        workspace.sums,
        workspace.highest,
        workspace.totals,
        workspace.arrived,
        scale * LOG2_E,
        window or NO_WINDOW,
        q.stride(0),
        block_tables.stride(0),
        GROUP=group,
        ROWS=max(16, triton.next_power_of_2(group)),
        KV_HEADS=kv_heads,
        BLOCK_SIZE=block_size,
        HEAD_DIM=head_dim,
        WIDTH=triton.next_power_of_2(head_dim),
        SPLIT=SPLIT,
        SPLIT_AT=SPLIT_AT,
        **options,
    )


@cache
def programs(device: torch.device, per_sm: int) -> int:
    """As many as run at once. On a CPU, that is in Triton's interpreter, few."""
    return per_sm * (torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1)


@triton.jit(do_not_specialize=["window"])
def _decode(
    q,
    keys,
    values,
    rows,
    positions,
    tables,
    tiles,
    counts,
    out,
    sums,
    highest,
    totals,
    arrived,
    scale,  # of scores, times log2(e)
    window,
    q_stride,
    table_stride,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,  # GROUP, padded
    KV_HEADS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,  # HEAD_DIM, padded
    SPLIT: tl.constexpr,
    SPLIT_AT: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    items = tl.load(counts + 1) * KV_HEADS
    told = tl.load(counts + SPLIT_AT)
    size = tl.where(told > 0, told, SPLIT)
    member = tl.arange(0, ROWS)
    lane = tl.arange(0, WIDTH)
    inside = (member < GROUP)[:, None] & (lane < HEAD_DIM)[None, :]
    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        tile, head = item // KV_HEADS, item % KV_HEADS
        t = tl.load(tiles + 2 * tile)
        split = tl.load(tiles + 2 * tile + 1)
        kv_len = tl.load(positions + t) + 1
        table = tables + tl.load(rows + t) * table_stride
        heads = head * GROUP + member
        query = tl.load(q + t * q_stride + heads[:, None] * HEAD_DIM + lane[None, :], mask=inside, other=0)
        first = tl.maximum(kv_len - window, 0)
        start = tl.maximum(split * size, first)
        end = tl.minimum(split * size + size, kv_len)
        if start < end:
            top = tl.full([ROWS], LOWEST, tl.float32)
            total = tl.zeros([ROWS], tl.float32)
            summed = tl.zeros([ROWS, WIDTH], tl.float32)
            for n in range(start, end, BLOCK_N):
                key = n + tl.arange(0, BLOCK_N)
                seen = key < end
                places = locate(table, key, seen, head, KV_HEADS, BLOCK_SIZE) * HEAD_DIM
                k = load_rows(keys, places, seen, lane, HEAD_DIM, WIDTH)
                scores = tl.dot(query, tl.trans(k), input_precision="ieee") * scale
                scores = tl.where(seen[None, :], scores, float("-inf"))
                v = load_rows(values, places, seen, lane, HEAD_DIM, WIDTH)
                top, total, summed = absorb(scores, v, top, total, summed)

            first_split = first // size
            parts = (kv_len + size - 1) // size - first_split
            target = out + t * (KV_HEADS * GROUP * HEAD_DIM) + heads[:, None] * HEAD_DIM + lane[None, :]
            if parts == 1:
                tl.store(target, (summed / total[:, None]).to(out.dtype.element_ty), mask=inside)
            else:
                place = tile * (KV_HEADS * GROUP) + heads
                tl.store(highest + place, top, mask=member < GROUP)
                tl.store(totals + place, total, mask=member < GROUP)
                tl.store(sums + place[:, None] * HEAD_DIM + lane[None, :], summed, mask=inside)
                tl.debug_barrier()  # what all threads stored comes before the one thread's release
                counter = arrived + t * KV_HEADS + head
                if tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == parts - 1:
                    place -= (split - first_split) * (KV_HEADS * GROUP)  # of the token's first part
                    top = tl.full([ROWS], LOWEST, tl.float32)
                    total = tl.zeros([ROWS], tl.float32)
                    summed = tl.zeros([ROWS, WIDTH], tl.float32)
                    for _ in range(parts):
                        its_top = tl.load(highest + place, mask=member < GROUP, other=0, cache_modifier=".cg")
                        its_total = tl.load(totals + place, mask=member < GROUP, other=1, cache_modifier=".cg")
                        part = sums + place[:, None] * HEAD_DIM + lane[None, :]
                        its_sums = tl.load(part, mask=inside, other=0, cache_modifier=".cg")
                        higher = tl.maximum(top, its_top)
                        old, new = tl.exp2(top - higher), tl.exp2(its_top - higher)
                        total = total * old + its_total * new
                        summed = summed * old[:, None] + its_sums * new[:, None]
                        top = higher
                        place += KV_HEADS * GROUP
                    tl.store(target, (summed / total[:, None]).to(out.dtype.element_ty), mask=inside)
                    tl.store(counter, 0)


@triton.jit
def locate(table, key, there, head, KV_HEADS: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    """Where in the cache keys (positions in the row) are, in units of head_dim. there: which are, None for all."""
    if there is None:
        block = tl.load(table + key // BLOCK_SIZE)
    else:
        block = tl.load(table + key // BLOCK_SIZE, mask=there, other=0)
    return (block.to(tl.int64) * KV_HEADS + head) * BLOCK_SIZE + key % BLOCK_SIZE


@triton.jit
def load_rows(side, places, there, lane, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr):
    """[BLOCK_N, WIDTH] keys or values; zero where not there: what else is in the cache may be NaN."""
    at = side + places[:, None] + lane[None, :]
    if there is not None:
        rows = tl.load(at, mask=there[:, None] & (lane < HEAD_DIM)[None, :], other=0)
    elif HEAD_DIM == WIDTH:
        rows = tl.load(at)
    else:
        rows = tl.load(at, mask=(lane < HEAD_DIM)[None, :], other=0)
    return rows


@triton.jit
def absorb(scores, v, top, total, summed):
    """One turn of the online softmax. Scores are in units of log2: -inf where masked."""
    higher = tl.maximum(top, tl.max(scores, 1))
    shrink = tl.exp2(top - higher)
    weights = tl.exp2(scores - higher[:, None])
    total = total * shrink + tl.sum(weights, 1)
    summed = tl.dot(weights.to(v.dtype), v, summed * shrink[:, None], input_precision="ieee")
    return higher, total, summed
