"""x @ weight.T for up to 32 rows of x: the time is that of reading the weights once.

    weight [N, K]      program p: rows p * BLOCK_N .. of it, over all of K; x is small and comes from L2

           K ->                                      up to MULTIPLIED rows: products in float32, summed at the end
    N    |.......|.......|  p = 0                    more rows: tensor cores, x padded to 16 or 32
    |    |.......|.......|  p = 1
    v    BLOCK_K

What surrounds a product can be done in the same launch: the norm of x before it, silu(gate) * up (then rows n and N + n
of the weight belong to one program) or the sum with the residual after it. Results do not depend on other rows, nor on
the order in which programs run. Values are rounded where separate kernels would round them.

Of one row on an H100, of its copy bandwidth of 3.03 TB/s: 8B's qkv 90 %, o 84, gate and up 100, down 92, head 104.

With `overlap` (engine/cuda/launch.py) the first tile of weights is asked for before x is waited for.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from engine.cuda.launch import gdc_launch_dependents, gdc_wait, options

MAX_ROWS = 32
MULTIPLIED = 1  # rows up to which no tensor cores are used


@dataclass(frozen=True, slots=True)
class Tiling:
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int = 0  # of tiles on their way to the tensor cores; 0: without these


@triton.jit
def _multiply(
    x,
    weight,
    bias,
    norm,
    eps,
    out,
    N,
    M: tl.constexpr,
    K: tl.constexpr,
    ROWS: tl.constexpr,  # M, padded to a power of two
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    NORM: tl.constexpr,
    GATED: tl.constexpr,
    ADD: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Tiles are [rows, BLOCK_N, BLOCK_K]; the next one is loaded before this one is used."""
    m = tl.arange(0, ROWS)[:, None, None]
    n = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N))[None, :, None]
    k = tl.arange(0, BLOCK_K)[None, None, :]
    x_at = x + m * K + k
    at = weight + n.to(tl.int64) * K + k
    up_at = at + N.to(tl.int64) * K
    if OVERLAP:
        gdc_launch_dependents()
    inside = (n < N) & (k < K)
    tile = tl.load(at, mask=inside, other=0.0, eviction_policy="evict_first")
    up_tile = tile
    if GATED:
        up_tile = tl.load(up_at, mask=inside, other=0.0, eviction_policy="evict_first")
    scale = tile
    if NORM:
        scale = tl.load(norm + k, mask=k < K, other=0.0)
    if OVERLAP:
        gdc_wait()
    part = tl.load(x_at, mask=(m < M) & (k < K), other=0.0)
    if NORM:
        value = part.to(tl.float32)
        inverse = tl.rsqrt(tl.sum(value * value, axis=2, keep_dims=True) / K + eps)
        part = (value * inverse * scale.to(tl.float32)).to(part.dtype)

    sums = tl.zeros((ROWS, BLOCK_N, BLOCK_K), tl.float32)
    up_sums = sums
    for start in range(BLOCK_K, K, BLOCK_K):
        inside = (n < N) & (start + k < K)
        next_tile = tl.load(at + start, mask=inside, other=0.0, eviction_policy="evict_first")
        next_up_tile = next_tile
        if GATED:
            next_up_tile = tl.load(up_at + start, mask=inside, other=0.0, eviction_policy="evict_first")
        next_part = tl.load(x_at + start, mask=(m < M) & (start + k < K), other=0.0)
        sums += tile.to(tl.float32) * part.to(tl.float32)
        if GATED:
            up_sums += up_tile.to(tl.float32) * part.to(tl.float32)
        tile = next_tile
        up_tile = next_up_tile
        part = next_part
    total = tl.sum(sums + tile.to(tl.float32) * part.to(tl.float32), axis=2)
    up_total = total
    if GATED:
        up_total = tl.sum(up_sums + up_tile.to(tl.float32) * part.to(tl.float32), axis=2)
    _finish(total, up_total, bias, out, N, M, ROWS, BLOCK_N, GATED, ADD)


@triton.jit
def _finish(
    total,
    up_total,
    bias,
    out,
    N,
    M: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    GATED: tl.constexpr,
    ADD: tl.constexpr,
):
    """What is done with the products, [rows, BLOCK_N] float32, on their way out."""
    dtype = out.dtype.element_ty
    m = tl.arange(0, ROWS)[:, None]
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    if bias is not None:
        total += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)
    if GATED:
        if bias is not None:
            up_total += tl.load(bias + N + n, mask=n < N, other=0.0).to(tl.float32)
        gate = total.to(dtype).to(tl.float32)
        total = (gate / (1.0 + tl.exp(-gate))).to(dtype).to(tl.float32) * up_total.to(dtype).to(tl.float32)
    to = out + m * N + n
    inside = (m < M) & (n < N)
    if ADD:
        total = total.to(dtype).to(tl.float32) + tl.load(to, mask=inside, other=0.0).to(tl.float32)
    tl.store(to, total.to(dtype), mask=inside)


@triton.jit
def _dot(
    x,
    weight,
    bias,
    out,
    N,
    M: tl.constexpr,
    K: tl.constexpr,
    ROWS: tl.constexpr,  # M, padded to what tensor cores take
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    NUM_STAGES: tl.constexpr,
    GATED: tl.constexpr,
    ADD: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    m = tl.arange(0, ROWS)[:, None]
    n = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N))[None, :]
    k = tl.arange(0, BLOCK_K)
    x_at = x + m * K + k[None, :]
    at = weight + n.to(tl.int64) * K + k[:, None]
    up_at = at + N.to(tl.int64) * K
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()
    total = tl.zeros((ROWS, BLOCK_N), tl.float32)
    up_total = total
    for start in tl.range(0, K, BLOCK_K, num_stages=NUM_STAGES):
        part = tl.load(x_at + start, mask=(m < M) & (start + k[None, :] < K), other=0.0)
        inside = (n < N) & (start + k[:, None] < K)
        total = tl.dot(part, tl.load(at + start, mask=inside, other=0.0), total, input_precision="ieee")
        if GATED:
            up_total = tl.dot(part, tl.load(up_at + start, mask=inside, other=0.0), up_total, input_precision="ieee")
    _finish(total, up_total, bias, out, N, M, ROWS, BLOCK_N, GATED, ADD)


def skinny_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor,
    *,
    norm: tuple[Tensor, float] | None = None,
    gated: bool = False,
    add: bool = False,
    overlap: bool = False,
    tiling: Tiling | None = None,
) -> None:
    """out = x @ weight.T + bias. x: [M, K], M <= 32; weight: [N, K]; bias: [N]; out: [M, N]; all contiguous.

    norm: weight [K] and epsilon of an RMSNorm of x that comes first; not with tensor cores, and K in one tile.
    gated: out, [M, N / 2], is silu(gate) * up, of which the first and the last N / 2 columns consist.
    add: out += that, instead.
    """
    rows, k = x.shape
    columns = out.shape[1]
    chosen = tiling or choose(rows, columns, k, gated, norm is not None)
    assert rows <= MAX_ROWS, rows
    assert norm is None or (chosen.num_stages == 0 and chosen.block_k >= k), chosen
    launched = options(chosen.num_warps, overlap)
    grid = (triton.cdiv(columns, chosen.block_n),)
    tile = (chosen.block_n, chosen.block_k)
    if chosen.num_stages:
        stages = chosen.num_stages
        shape = (columns, rows, k, max(16, triton.next_power_of_2(rows)))
        _dot[grid](x, weight, bias, out, *shape, *tile, stages, gated, add, overlap, **launched)
        return
    padded = triton.next_power_of_2(rows)
    scale, eps = norm or (None, 0.0)
    flags = (norm is not None, gated, add, overlap)
    _multiply[grid](x, weight, bias, scale, eps, out, columns, rows, k, padded, *tile, *flags, **launched)


def choose(rows: int, columns: int, k: int, gated: bool, normed: bool) -> Tiling:
    """The best, or nearly, of those tried on an H100: docs/log.md."""
    if rows > MULTIPLIED:
        return Tiling(32, 128, 4, 5)
    block_k = triton.next_power_of_2(k)
    if block_k > 4096:
        return Tiling(1 if gated else 2, block_k, 8) if normed else Tiling(4, 2048, 4)
    return Tiling(1 if gated and block_k == 4096 else 4, block_k, 4)
