"""Portable attention in plain torch: each sequence's blocks are gathered, then scaled_dot_product_attention.

The query heads that share a kv head stay query heads (enable_gqa) where there are many rows; in decode they become
query rows of that kv head, which saves repeating keys and values.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.attention.base import write_kv
from engine.batch import BatchView
from engine.kvcache import LayerKV


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
class SdpaMeta:
    slots: Tensor
    spans: list[SequenceSpan]


class SdpaAttention:
    name = "sdpa"

    def prepare(self, view: BatchView, block_size: int) -> SdpaMeta:
        return SdpaMeta(view.slots, [span(view, s, block_size) for s in range(view.num_seqs)])

    def run(
        self, q: Tensor, k: Tensor, v: Tensor, cache: LayerKV, meta: SdpaMeta, scale: float, window: int | None
    ) -> Tensor:
        write_kv(k, v, cache, meta.slots)
        out = torch.empty_like(q)
        for one in meta.spans:
            out[one.first : one.end] = attend(q[one.first : one.end], cache, one, scale, window)
        return out


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
