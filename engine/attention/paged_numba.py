"""Attention for CPUs: decode rows read the paged cache in place in one compiled kernel; prompt chunks go the sdpa way.

One task is one (sequence, kv head). The query heads that share the kv head go over its keys together, block after
block with an online softmax (arXiv 1805.02867), so the cache is read once and nothing is gathered. A row's sums run
in the order of its blocks, whatever else is in the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numba import prange
from numpy.typing import NDArray
from torch import Tensor

from engine.attention.sdpa import SequenceSpan, attend, span
from engine.batch import BatchView
from engine.jit import as_array, kernel, widen
from engine.kvcache import LayerKV

MASKED = np.float32(-1e30)  # below every score, and finite: differences of two of them are 0, not NaN


@kernel(parallel=True)
def paged_decode(
    q: NDArray[Any],  # [sequences, heads, head_dim]
    keys: NDArray[Any],  # [num_blocks, kv_heads, block_size, head_dim]
    values: NDArray[Any],
    tables: NDArray[np.int32],  # [sequences, widest]
    kv_lens: NDArray[np.int32],  # [sequences]
    scale: np.float32,
    window: int,  # 0: none
    out: NDArray[np.float32],  # [sequences, heads, head_dim]
) -> None:
    sequences, heads, head_dim = q.shape
    kv_heads, block_size = keys.shape[1], keys.shape[2]
    group = heads // kv_heads
    for task in prange(sequences * kv_heads):
        s, h = task // kv_heads, task % kv_heads
        kv_len = kv_lens[s]
        first = max(0, kv_len - window) if window > 0 else 0
        query = _query(q[s, h * group : (h + 1) * group], scale)
        highest = np.full(group, MASKED, np.float32)  # score so far of each query head
        total = np.zeros(group, np.float32)  # of exp(score - highest)
        sums = np.zeros((group, head_dim), np.float32)  # of exp(score - highest) * value
        scores = np.empty((group, block_size), np.float32)
        for index in range(first // block_size, (kv_len + block_size - 1) // block_size):
            start = max(first - index * block_size, 0)
            end = min(block_size, kv_len - index * block_size)
            _score(query, keys[tables[s, index], h, start:end], scores)
            _rescale(scores[:, : end - start], highest, total, sums)
            _add_values(scores, values[tables[s, index], h, start:end], sums)
        for g in range(group):
            for d in range(head_dim):
                out[s, h * group + g, d] = sums[g, d] / total[g]


@kernel(parallel=False)
def _query(rows: NDArray[Any], scale: np.float32) -> NDArray[np.float32]:
    """The query heads that share one kv head, in float32 and scaled. rows: [group, head_dim]."""
    query = np.empty(rows.shape, np.float32)
    for g in range(rows.shape[0]):
        for d in range(rows.shape[1]):
            query[g, d] = widen(rows[g, d]) * scale
    return query


@kernel(parallel=False)
def _score(query: NDArray[np.float32], keys: NDArray[Any], scores: NDArray[np.float32]) -> None:
    """scores[g, j] = query[g] . keys[j], for the keys of one block."""
    row = np.empty(keys.shape[1], np.float32)
    for j in range(keys.shape[0]):
        for d in range(keys.shape[1]):
            row[d] = widen(keys[j, d])
        for g in range(query.shape[0]):
            score = np.float32(0)
            for d in range(keys.shape[1]):
                score += query[g, d] * row[d]
            scores[g, j] = score


@kernel(parallel=False)
def _rescale(
    scores: NDArray[np.float32],
    highest: NDArray[np.float32],
    total: NDArray[np.float32],
    sums: NDArray[np.float32],
) -> None:
    """Turns scores into weights relative to the highest score so far, and what was summed before likewise."""
    for g in range(scores.shape[0]):
        top = highest[g]
        for j in range(scores.shape[1]):
            top = max(top, scores[g, j])
        shrink = np.exp(highest[g] - top)
        highest[g] = top
        weight = np.float32(0)
        for j in range(scores.shape[1]):
            scores[g, j] = np.exp(scores[g, j] - top)
            weight += scores[g, j]
        total[g] = total[g] * shrink + weight
        for d in range(sums.shape[1]):
            sums[g, d] *= shrink


@kernel(parallel=False)
def _add_values(weights: NDArray[np.float32], values: NDArray[Any], sums: NDArray[np.float32]) -> None:
    """sums[g] += weights[g, j] * values[j], for the values of one block."""
    row = np.empty(values.shape[1], np.float32)
    for j in range(values.shape[0]):
        for d in range(values.shape[1]):
            row[d] = widen(values[j, d])
        for g in range(sums.shape[0]):
            for d in range(values.shape[1]):
                sums[g, d] += weights[g, j] * row[d]


@kernel(parallel=False)
def scatter(rows: NDArray[Any], side: NDArray[Any], slots: NDArray[np.int64]) -> None:
    """rows: [tokens, kv_heads, head_dim] into side: [num_blocks, kv_heads, block_size, head_dim]. Copies bits only."""
    block_size = side.shape[2]
    for token in range(len(slots)):
        block, offset = slots[token] // block_size, slots[token] % block_size
        for head in range(rows.shape[1]):
            for d in range(rows.shape[2]):
                side[block, head, offset, d] = rows[token, head, d]


@dataclass(frozen=True, slots=True)
class NumbaMeta:
    slots: Tensor
    decode_rows: Tensor | None  # [decodes] int64; None: the batch is decodes only, in order
    tables: NDArray[np.int32]  # of the decodes
    kv_lens: NDArray[np.int32]
    chunks: list[SequenceSpan]


class NumbaAttention:
    name = "numba"

    def prepare(self, view: BatchView, block_size: int) -> NumbaMeta:
        rows = np.diff(view.q_starts)
        single = np.flatnonzero(rows == 1)
        chunks = [span(view, int(s), block_size) for s in np.flatnonzero(rows > 1)]
        if not chunks:
            return NumbaMeta(view.slots, None, view.block_tables, view.kv_lens, chunks)
        decode_rows = torch.from_numpy(view.q_starts[single].astype(np.int64))
        return NumbaMeta(view.slots, decode_rows, view.block_tables[single], view.kv_lens[single], chunks)

    def run(
        self, q: Tensor, k: Tensor, v: Tensor, cache: LayerKV, meta: NumbaMeta, scale: float, window: int | None
    ) -> Tensor:
        slots = meta.slots.numpy()
        scatter(as_array(k), as_array(cache.keys), slots)
        scatter(as_array(v), as_array(cache.values), slots)
        if meta.decode_rows is None:
            return self._decode(q, cache, meta, scale, window)
        out = torch.empty_like(q)
        if len(meta.kv_lens):
            out[meta.decode_rows] = self._decode(q[meta.decode_rows], cache, meta, scale, window)
        for one in meta.chunks:
            out[one.first : one.end] = attend(q[one.first : one.end], cache, one, scale, window)
        return out

    def _decode(self, q: Tensor, cache: LayerKV, meta: NumbaMeta, scale: float, window: int | None) -> Tensor:
        out = torch.empty(q.shape, dtype=torch.float32)
        keys, values = as_array(cache.keys), as_array(cache.values)
        sizes = (meta.tables, meta.kv_lens, np.float32(scale), window or 0)
        # q of several rows has gaps between them, q of one row has none. To numba these are two types, and the second
        # would be compiled, for seconds, when the first two streams meet.
        paged_decode(as_array(q.contiguous()), keys, values, *sizes, out.numpy())
        return out.to(q.dtype)
