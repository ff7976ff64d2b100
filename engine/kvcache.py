"""The paged cache: how many blocks there are, and their memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.errors import OutOfMemory
from engine.models.spec import Shape
from engine.pages import zero_pages

RESERVED_BLOCKS = 2  # block 0: zeros that padding reads; block 1: where padding writes
CPU_SHARE = 0.25  # of the memory that is available
CPU_MAX_BYTES = 4 << 30


@dataclass(frozen=True, slots=True)
class LayerKV:
    keys: Tensor  # [num_blocks, kv_heads, block_size, head_dim]
    values: Tensor


@dataclass(frozen=True, slots=True)
class KVCache:
    layers: list[LayerKV]
    num_blocks: int
    block_size: int

    @property
    def num_bytes(self) -> int:
        return sum(2 * layer.keys.numel() * layer.keys.element_size() for layer in self.layers)


def block_bytes(spec: Shape, block_size: int, dtype: torch.dtype) -> int:
    """Bytes of one block over all layers."""
    return 2 * spec.num_layers * spec.kv_size * block_size * dtype.itemsize


def num_blocks_for(spec: Shape, block_size: int, dtype: torch.dtype, budget_bytes: int, max_model_len: int) -> int:
    """Blocks that the budget pays for, not more than 256 full contexts would need.

    Raises OutOfMemory where not even one block beside the reserved ones fits.
    """
    one = block_bytes(spec, block_size, dtype)
    blocks = min(budget_bytes // one, RESERVED_BLOCKS + 256 * -(-max_model_len // block_size))
    if blocks <= RESERVED_BLOCKS:
        raise OutOfMemory(
            f"a KV cache of {budget_bytes} bytes holds {budget_bytes // one} blocks, {RESERVED_BLOCKS + 1} are the "
            f"least; give it at least {(RESERVED_BLOCKS + 1) * one} bytes (--kv-cache-memory)"
        )
    return int(blocks)


def allocate(spec: Shape, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device) -> KVCache:
    """Zeroed."""
    shape = (num_blocks, spec.num_kv_heads, block_size, spec.head_dim)
    layers = [LayerKV(_zeros(shape, dtype, device), _zeros(shape, dtype, device)) for _ in range(spec.num_layers)]
    return KVCache(layers, num_blocks, block_size)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """On the CPU in pages that cost nothing until they are first written; torch's zeros fill them all."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.from_numpy(zero_pages(math.prod(shape) * dtype.itemsize)).view(dtype).view(shape)
