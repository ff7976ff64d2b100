"""Attention as the definition says, one sequence, one row and one head at a time, in float64: the oracle."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.attention.base import write_kv
from engine.batch import BatchView
from engine.kvcache import LayerKV


class ReferenceAttention:
    name = "reference"

    def prepare(self, view: BatchView, block_size: int) -> BatchView:
        return view

    def run(
        self, q: Tensor, k: Tensor, v: Tensor, cache: LayerKV, meta: BatchView, scale: float, window: int | None
    ) -> Tensor:
        write_kv(k, v, cache, meta.slots)
        out = torch.empty_like(q)
        group = q.shape[1] // k.shape[1]
        for s in range(meta.num_seqs):
            first, end = int(meta.q_starts[s]), int(meta.q_starts[s + 1])
            for row in range(first, end):
                position = int(meta.kv_lens[s]) - (end - row)
                for kv_head in range(k.shape[1]):
                    keys, values = _context(cache, meta.block_tables[s], kv_head, position, window)
                    for head in range(kv_head * group, (kv_head + 1) * group):
                        scores = keys @ q[row, head].double() * scale
                        out[row, head] = (scores.softmax(dim=0) @ values).to(q.dtype)
        return out


def _context(
    cache: LayerKV, table: NDArray[np.int32], kv_head: int, position: int, window: int | None
) -> tuple[Tensor, Tensor]:
    """Keys and values, [visible, head_dim] float64, that the row at `position` attends."""
    block_size = cache.keys.shape[2]
    first = 0 if window is None else max(0, position + 1 - window)
    places = np.arange(first, position + 1)
    blocks, offsets = torch.from_numpy(table[places // block_size]).long(), torch.from_numpy(places % block_size)
    return cache.keys[blocks, kv_head, offsets].double(), cache.values[blocks, kv_head, offsets].double()
