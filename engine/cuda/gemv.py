"""x @ weight.T for one row of x: the time is that of reading the weights once.

    weight [N, K]      program p: rows p * BLOCK_N .. of it, over all of K; x is small and comes from L2

           K ->
    N    |.......|.......|  p = 0      products in float32, summed at the end
    |    |.......|.......|  p = 1
    v    BLOCK_K

What surrounds a product can be done in the same launch: the norm of x before it, silu(gate) * up (then rows n and N + n
of the weight belong to one program) or the sum with the residual after it. Results do not depend on the order in which
programs run. Values are rounded where separate kernels would round them.

On an H100, of its copy bandwidth of 3.03 TB/s: 8B's qkv 90 %, o 84, gate and up 100, down 92, head 104.

With `overlap` (engine/cuda/launch.py) the first tile of weights is asked for before x is waited for.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from engine.cuda.launch import gdc_launch_dependents, gdc_wait, options


@dataclass(frozen=True, slots=True)
class Tiling:
    block_n: int
    block_k: int
    num_warps: int


@triton.jit
def _multiply(
    x,
    weight,
    bias,
    norm,
    eps,
    out,
    N,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    NORM: tl.constexpr,
    GATED: tl.constexpr,
    ADD: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Tiles are [BLOCK_N, BLOCK_K]; the next one is loaded before this one is used."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)[None, :]
    at = weight + n.to(tl.int64)[:, None] * K + k
    up_at = at + N.to(tl.int64) * K
    if OVERLAP:
        gdc_launch_dependents()
    inside = (n < N)[:, None] & (k < K)
    tile = tl.load(at, mask=inside, other=0.0, eviction_policy="evict_first")
    up_tile = tile
    if GATED:
        up_tile = tl.load(up_at, mask=inside, other=0.0, eviction_policy="evict_first")
    scale = tile
    if NORM:
        scale = tl.load(norm + k, mask=k < K, other=0.0)
    if OVERLAP:
        gdc_wait()
    part = tl.load(x + k, mask=k < K, other=0.0)
    if NORM:
        value = part.to(tl.float32)
        inverse = tl.rsqrt(tl.sum(value * value, axis=1, keep_dims=True) / K + eps)
        part = (value * inverse * scale.to(tl.float32)).to(part.dtype)

    sums = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    up_sums = sums
    for start in range(BLOCK_K, K, BLOCK_K):
        inside = (n < N)[:, None] & (start + k < K)
        next_tile = tl.load(at + start, mask=inside, other=0.0, eviction_policy="evict_first")
        next_up_tile = next_tile
        if GATED:
            next_up_tile = tl.load(up_at + start, mask=inside, other=0.0, eviction_policy="evict_first")
        next_part = tl.load(x + start + k, mask=start + k < K, other=0.0)
        sums += tile.to(tl.float32) * part.to(tl.float32)
        if GATED:
            up_sums += up_tile.to(tl.float32) * part.to(tl.float32)
        tile = next_tile
        up_tile = next_up_tile
        part = next_part
    total = tl.sum(sums + tile.to(tl.float32) * part.to(tl.float32), axis=1)

    dtype = out.dtype.element_ty
    if bias is not None:
        total += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)
    if GATED:
        up_total = tl.sum(up_sums + up_tile.to(tl.float32) * part.to(tl.float32), axis=1)
        if bias is not None:
            up_total += tl.load(bias + N + n, mask=n < N, other=0.0).to(tl.float32)
        gate = total.to(dtype).to(tl.float32)
        total = (gate / (1.0 + tl.exp(-gate))).to(dtype).to(tl.float32) * up_total.to(dtype).to(tl.float32)
    if ADD:
        total = total.to(dtype).to(tl.float32) + tl.load(out + n, mask=n < N, other=0.0).to(tl.float32)
    tl.store(out + n, total.to(dtype), mask=n < N)


def linear_alone(
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
    """out = x @ weight.T + bias. x: [1, K]; weight: [N, K]; bias: [N]; out: [1, N]; all contiguous.

    norm: weight [K] and epsilon of an RMSNorm of x that comes first; K in one tile.
    gated: out, [1, N / 2], is silu(gate) * up, of which the first and the last N / 2 columns consist.
    add: out += that, instead.
    """
    k, columns = x.shape[1], out.shape[1]
    chosen = tiling or choose(k, gated, norm is not None)
    assert len(x) == 1, x.shape
    assert norm is None or chosen.block_k >= k, chosen
    scale, eps = norm or (None, 0.0)
    tile = (chosen.block_n, chosen.block_k)
    flags = (norm is not None, gated, add, overlap)
    _multiply[(triton.cdiv(columns, chosen.block_n),)](
        x, weight, bias, scale, eps, out, columns, k, *tile, *flags, **options(chosen.num_warps, overlap)
    )


def choose(k: int, gated: bool, normed: bool) -> Tiling:
    """The best, or nearly, of those tried on an H100: docs/log.md."""
    block_k = triton.next_power_of_2(k)
    if block_k > 4096:
        return Tiling(1 if gated else 2, block_k, 8) if normed else Tiling(4, 2048, 4)
    return Tiling(1 if gated and block_k == 4096 else 4, block_k, 4)
