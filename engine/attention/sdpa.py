"""Portable attention in plain torch: each sequence's blocks are gathered, then scaled_dot_product_attention.

The query heads that share a kv head stay query heads (enable_gqa) where there are many rows; in decode they become
query rows of that kv head, which saves repeating keys and values. Sequences in decode go together, as wide as the
longest: on a GPU what counts is how many operations there are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from engine.attention.base import write_kv
from engine.batch import BatchView
from engine.kvcache import LayerKV

GATHERED_BYTES = 256 << 20  # of keys, and of values, that are gathered at once


@dataclass(frozen=True, slots=True)
class SequenceSpan:
    """One sequence of a step."""

    first: int  # its rows are first .. end-1
    end: int
    kv_len: int
    blocks: Tensor  # [ceil(kv_len / block_size)] int64

    @property
    def rows(self) -> int:
        return self.end - self.first


@dataclass(frozen=True, slots=True)
class Decodes:
    """The sequences of a step that have one row each."""

    rows: Tensor  # [sequences] int64: of the step
    kv_lens: Tensor  # [sequences] int64
    tables: Tensor  # [sequences, blocks of the longest] int64


@dataclass(frozen=True, slots=True)
class SdpaMeta:
    slots: Tensor
    decodes: Decodes | None
    spans: list[SequenceSpan]  # of the others


class SdpaAttention:
    name = "sdpa"

    def prepare(self, view: BatchView, block_size: int) -> SdpaMeta:
        is_decode = np.diff(view.q_starts) == 1
        if is_decode.sum() < 2:  # alone, nothing is padded
            is_decode[:] = False
        spans = [span(view, int(s), block_size) for s in np.flatnonzero(~is_decode)]
        decodes = decodes_of(view, np.flatnonzero(is_decode), block_size) if is_decode.any() else None
        return SdpaMeta(view.slots, decodes, spans)

    def run(
        self, q: Tensor, k: Tensor, v: Tensor, cache: LayerKV, meta: SdpaMeta, scale: float, window: int | None
    ) -> Tensor:
        write_kv(k, v, cache, meta.slots)
        out = torch.empty_like(q)
        for one in meta.spans:
            out[one.first : one.end] = attend(q[one.first : one.end], cache, one, scale, window)
        if meta.decodes is not None:
            rows = meta.decodes.rows
            out[rows] = attend_decodes(q[rows], cache, meta.decodes, scale, window)
        return out


def decodes_of(view: BatchView, seqs: NDArray[np.int64], block_size: int) -> Decodes:
    kv_lens, device = view.kv_lens[seqs].astype(np.int64), view.ids.device
    widest = -(-int(kv_lens.max()) // block_size)
    arrays = (view.q_starts[seqs].astype(np.int64), kv_lens, view.block_tables[seqs, :widest].astype(np.int64))
    return Decodes(*(torch.from_numpy(array).to(device) for array in arrays))


def attend_decodes(q: Tensor, cache: LayerKV, decodes: Decodes, scale: float, window: int | None) -> Tensor:
    """q: [sequences, heads, head_dim], whose keys are in the cache already."""
    _, kv_heads, block_size, head_dim = cache.keys.shape
    length = decodes.tables.shape[1] * block_size
    places = torch.arange(length, device=q.device)
    seen = places < decodes.kv_lens[:, None]
    if window is not None:
        seen &= places >= decodes.kv_lens[:, None] - window
    # What is not seen is read from block 0, which holds zeros: what others have left behind must not even be masked,
    # for if it were not finite, neither would be its product with 0.
    blocks = decodes.tables.repeat_interleave(block_size, dim=1) * seen
    offsets = places % block_size * seen
    at_once = max(1, GATHERED_BYTES // (length * kv_heads * head_dim * q.itemsize))
    parts = (slice(first, first + at_once) for first in range(0, len(q), at_once))
    return torch.cat([_attend_padded(q[p], blocks[p], offsets[p], seen[p], cache, scale) for p in parts])


def _attend_padded(q: Tensor, blocks: Tensor, offsets: Tensor, seen: Tensor, cache: LayerKV, scale: float) -> Tensor:
    """blocks, offsets, seen: [sequences, length]"""
    sides = (cache.keys, cache.values)
    keys, values = (side[blocks, :, offsets].transpose(1, 2) for side in sides)  # [sequences, kv_heads, length, dim]
    grouped = q.reshape(len(q), keys.shape[1], -1, q.shape[2])
    return F.scaled_dot_product_attention(grouped, keys, values, seen[:, None, None], scale=scale).reshape(q.shape)


def span(view: BatchView, s: int, block_size: int) -> SequenceSpan:
    kv_len = int(view.kv_lens[s])
    blocks = torch.from_numpy(view.block_tables[s, : -(-kv_len // block_size)]).to(view.ids.device, torch.int64)
    return SequenceSpan(int(view.q_starts[s]), int(view.q_starts[s + 1]), kv_len, blocks)


def attend(q: Tensor, cache: LayerKV, one: SequenceSpan, scale: float, window: int | None) -> Tensor:
    """q: [rows, heads, head_dim] of one sequence, whose keys are in the cache already."""
    keys, values = (_gather(side, one) for side in (cache.keys, cache.values))  # [kv_heads, kv_len, head_dim]
    rows, heads, head_dim = q.shape
    if rows == 1:
        grouped = q.reshape(1, keys.shape[0], -1, head_dim)
        mask = _visible(one, window, q.device)
        return F.scaled_dot_product_attention(grouped, keys[None], values[None], mask, scale=scale).reshape(q.shape)
    by_head = q.transpose(0, 1)[None]
    whole = rows == one.kv_len and window is None
    mask = None if whole else _visible(one, window, q.device)
    out = F.scaled_dot_product_attention(
        by_head, keys[None], values[None], mask, is_causal=whole, scale=scale, enable_gqa=keys.shape[0] != heads
    )
    return out[0].transpose(0, 1)


def _gather(side: Tensor, one: SequenceSpan) -> Tensor:
    """[blocks, kv_heads, block_size, head_dim] through the block table -> [kv_heads, kv_len, head_dim]."""
    gathered = side[one.blocks].transpose(0, 1)
    return gathered.reshape(gathered.shape[0], -1, gathered.shape[3])[:, : one.kv_len]


def _visible(one: SequenceSpan, window: int | None, device: torch.device) -> Tensor | None:
    """[rows, kv_len] bool; None where a single row sees everything."""
    if one.rows == 1 and (window is None or window >= one.kv_len):
        return None
    position = torch.arange(one.kv_len - one.rows, one.kv_len, device=device)[:, None]
    key = torch.arange(one.kv_len, device=device)[None]
    mask = key <= position
    return mask if window is None else mask & (key > position - window)
