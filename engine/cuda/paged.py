"""What both attention kernels share: places in the paged cache, a turn of the online softmax, how they are launched."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl

from engine.cuda import launch
from engine.kvcache import LayerKV

LOG2_E = 1.4426950408889634
NO_WINDOW = 1 << 30
LOWEST = tl.constexpr(-1e30)  # below every score, and finite: differences of two of them are 0, not NaN


def place_type(cache: LayerKV) -> tl.dtype:
    """Narrow where it can be: addresses take many registers."""
    return tl.int32 if cache.keys.numel() < 1 << 31 else tl.int64


def launched(options: dict[str, int], overlap: bool) -> dict[str, Any]:
    return {**options, **launch.options(options["num_warps"], overlap)}


@cache
def programs(device: torch.device, per_sm: int) -> int:
    """As many as run at once. On a CPU, that is in Triton's interpreter, few."""
    return per_sm * (torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1)


@triton.jit
def look_up(table, key, end, BLOCK_SIZE: tl.constexpr):
    """The blocks that hold keys (positions in the row), block 0 from `end` on. One turn before they are needed: then
    the turns' keys and values, which are loaded several turns ahead, need not wait for them."""
    return tl.load(table + key // BLOCK_SIZE, mask=key < end, other=0)


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


@triton.jit
def turned(head, lane, inside, norm, cos, sin, eps, ROPE: tl.constexpr, HEAD_DIM: tl.constexpr):
    """Heads of q or k, [rows, WIDTH], normed and rotated as engine/cuda/rope.py does it. cos, sin: at the position."""
    half: tl.constexpr = HEAD_DIM // 2
    dtype = head.dtype.element_ty
    is_left = lane < half
    other = tl.where(is_left, lane + half, lane - half)
    value = tl.load(head + lane, mask=inside, other=0).to(tl.float32)
    partner = tl.load(head + other, mask=inside, other=0).to(tl.float32)
    real = lane < HEAD_DIM
    if norm is not None:
        inverse = tl.rsqrt(tl.sum(value * value, axis=1) / HEAD_DIM + eps)[:, None]
        value = (value * inverse * tl.load(norm + lane, mask=real, other=0).to(tl.float32)).to(dtype).to(tl.float32)
        partner = (partner * inverse * tl.load(norm + other, mask=real, other=0).to(tl.float32)).to(dtype)
        partner = partner.to(tl.float32)
    if ROPE:
        angle = tl.where(is_left, lane, lane - half)
        c, s = tl.load(cos + angle, mask=real, other=0), tl.load(sin + angle, mask=real, other=0)
        value = value * c + tl.where(is_left, -partner, partner) * s
    return value.to(dtype)
