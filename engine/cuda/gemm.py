"""x @ weight.T for 2 to 256 rows of x, on Hopper: tiles by its copy engine, sums by its tensor cores.

    program (n, m):   columns n * BLOCK_N .. of the result, rows m * BLOCK_M ..

                 K ->   BLOCK_K
    x      m    |.......|.......|      Tiles of both wait in shared memory, NUM_STAGES deep, for wgmma. Programs that
    weight n    |.......|.......|      share a tile of weights are neighbours: memory is read once, L2 twice.
    weight N+n  |.......|.......|      gated: silu(x @ weight[n].T) * (x @ weight[N + n].T), in the same launch

What pays, against cuBLAS: silu needs no launch and no memory of its own, and this starts while the kernel before it
ends, as the one after it does (engine/cuda/launch.py). On an H100 with the norm before it, of its copy bandwidth of
3.03 TB/s: gate and up of 8B at 2 / 64 / 128 rows 95 / 92 / 87 % (cuBLAS and silu 92 / 85 / 81), at 256 72 (69); the
head at 2 / 64 rows 101 / 95 (91 / 89). Sums are in float32 over all of K in one order, whatever the number of rows;
values are rounded where separate kernels would round them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from engine.cuda.launch import gdc_launch_dependents, gdc_wait, options

MAX_ROWS = 256
WHOLE = 128  # rows of the largest tile
SMALL = 1 << 23  # numbers of a weight that many rows do not slow down as much as they do large ones
LEAST_PROGRAMS = 96  # of 132 multiprocessors: fewer cannot keep memory busy
SHARED_BYTES = 225 << 10  # of 227 that a program may have
LINE = 64  # numbers of 2 bytes in a line of L2
LINES_AHEAD = 4  # of each row of weights, before x is waited for
LEAST_N = 32


@dataclass(frozen=True, slots=True)
class Tiling:
    block_m: int
    block_n: int
    block_k: int
    num_stages: int
    num_warps: int


@triton.jit
def _tiled(
    x,
    tiles,  # of weight
    weight,
    bias,
    out,
    M,
    N,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GATED: tl.constexpr,
    OVERLAP: tl.constexpr,
    LINE: tl.constexpr,
    LINES_AHEAD: tl.constexpr,
):
    dtype = out.dtype.element_ty
    in_m = tl.cdiv(M, BLOCK_M)
    first_m = tl.program_id(0) % in_m * BLOCK_M
    first_n = tl.program_id(0) // in_m * BLOCK_N
    if OVERLAP:
        gdc_launch_dependents()
        row = (first_n + tl.arange(0, BLOCK_N)).to(tl.int64)[:, None] * K + tl.arange(0, LINES_AHEAD)[None, :] * LINE
        _ask_for(weight + row)
        if GATED:
            _ask_for(weight + N.to(tl.int64) * K + row)
        gdc_wait()
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    up_total = total
    for k in range(0, K, BLOCK_K):
        part = x.load([first_m, k])
        total = tl.dot(part, tiles.load([first_n, k]).T, total, input_precision="ieee")
        if GATED:
            up_total = tl.dot(part, tiles.load([N + first_n, k]).T, up_total, input_precision="ieee")

    m = (first_m + tl.arange(0, BLOCK_M))[:, None]
    n = (first_n + tl.arange(0, BLOCK_N))[None, :]
    if bias is not None:
        total += tl.load(bias + n).to(tl.float32)
    if GATED:
        if bias is not None:
            up_total += tl.load(bias + N + n).to(tl.float32)
        gate = total.to(dtype).to(tl.float32)
        total = (gate / (1.0 + tl.exp(-gate))).to(dtype).to(tl.float32) * up_total.to(dtype).to(tl.float32)
    tl.store(out + m * N + n, total.to(dtype), mask=m < M)


@triton.jit
def _ask_for(lines):
    """Into L2. The result means nothing."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [lines], dtype=tl.int32, is_pure=False, pack=1
    )


def serves(rows: int, weight: Tensor, gated: bool) -> bool:
    """Whether this is the faster way for so many rows, on this device."""
    if not weight.is_cuda or weight.element_size() != 2 or torch.cuda.get_device_capability(weight.device)[0] != 9:
        return False
    columns, k = weight.shape
    if columns % (2 * LEAST_N) or k % (LINES_AHEAD * LINE):
        return False
    if weight.numel() < SMALL:
        return rows <= MAX_ROWS
    # Between those of one tile and nearly two, much of the second would be for nothing.
    return rows <= WHOLE or (gated and 224 <= rows <= MAX_ROWS)


def room(rows: int, columns: int, *, like: Tensor) -> Tensor:
    """[rows, columns], uninitialised, with memory behind it up to whole tiles: see tiled_linear."""
    return like.new_empty(-(-rows // WHOLE) * WHOLE, columns)[:rows]


def tiled_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor,
    *,
    gated: bool = False,
    overlap: bool = False,
    tiling: Tiling | None = None,
) -> None:
    """out = x @ weight.T + bias. x: [M, K], from `room`: for tiles that reach past the end of a tensor the copy engine
    fills in zeros, which takes a fifth longer than reading on, whatever is there. weight: [N, K]; bias: [N]; out:
    [M, N]; all contiguous. N (of gate and up, each) a multiple of the tiling's block_n; K of 8, with overlap of 256.

    gated: out, [M, N / 2], is silu(gate) * up, of which the first and the last N / 2 columns consist.
    """
    rows, k = x.shape
    columns = out.shape[1]
    chosen = tiling or choose(rows, columns, gated)
    assert columns % chosen.block_n == 0, (columns, chosen)
    grid = (triton.cdiv(rows, chosen.block_m) * (columns // chosen.block_n),)
    whole = -(-rows // chosen.block_m) * chosen.block_m
    assert x.untyped_storage().nbytes() >= (x.storage_offset() + whole * k) * x.element_size(), x.shape
    parts = TensorDescriptor.from_tensor(x.as_strided((whole, k), (k, 1)), [chosen.block_m, chosen.block_k])
    tiles = TensorDescriptor.from_tensor(weight, [chosen.block_n, chosen.block_k])
    _tiled[grid](
        parts,
        tiles,
        weight,
        bias,
        out,
        rows,
        columns,
        k,
        chosen.block_m,
        chosen.block_n,
        chosen.block_k,
        gated,
        overlap,
        LINE,
        LINES_AHEAD,
        num_stages=chosen.num_stages,
        **options(chosen.num_warps, overlap),
    )


def choose(rows: int, columns: int, gated: bool) -> Tiling:
    """The best, or nearly, of those tried on an H100: docs/log.md."""
    few = rows <= 128
    block_m = 64 if rows <= 64 else 128
    block_k = 128 if few else 64
    block_n = 64 if few else 128
    in_m = triton.cdiv(rows, block_m)
    while block_n > LEAST_N and (columns % block_n or in_m * (columns // block_n) < LEAST_PROGRAMS):
        block_n //= 2
    sides = 2 if gated else 1
    num_stages = min(SHARED_BYTES // (2 * block_k * (block_m + sides * block_n)), 8)
    return Tiling(block_m, block_n, block_k, num_stages, 8 if sides * block_m * block_n > 1 << 14 else 4)
