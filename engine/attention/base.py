"""The protocol of attention backends."""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from engine.batch import BatchView
from engine.kvcache import LayerKV

Meta = TypeVar("Meta")


class AttentionBackend(Protocol, Generic[Meta]):
    """Writes new keys and values into the paged cache, then attends: row t of sequence s, at position p, sees keys
    0..p of s, or the last `window` of them, itself included. The cache is [num_blocks, kv_heads, block_size, head_dim].
    """

    name: str

    def prepare(self, view: BatchView, block_size: int) -> Meta:
        """What all layers of a step share. Called once a step; must not keep `view` longer than the step."""

    def run(
        self, q: Tensor, k: Tensor, v: Tensor, cache: LayerKV, meta: Meta, scale: float, window: int | None
    ) -> Tensor:
        """q: [tokens, heads, head_dim]; k, v: [tokens, kv_heads, head_dim]. Returns [tokens, heads, head_dim]."""


def write_kv(k: Tensor, v: Tensor, cache: LayerKV, slots: Tensor) -> None:
    """Scatters [tokens, kv_heads, head_dim] into the cache at `slots`."""
    block_size = cache.keys.shape[2]
    block, offset = torch.div(slots, block_size, rounding_mode="floor"), slots % block_size
    cache.keys[block, :, offset] = k
    cache.values[block, :, offset] = v
