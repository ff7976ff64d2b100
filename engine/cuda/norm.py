"""RMSNorm, with the residual added before it: one program a token, the row in registers between reading and writing.

    program t:   residual[t, :] += x[t, :]          (add_rms_norm; rounded to the type of the residual, as stored)
                 out[t, :] = residual[t, :] / rms * weight

Bytes a token: hidden times 2 reads and 2 writes (rms_norm: 1 and 1). Sums in float32, one rounding at the end.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from engine.cuda.launch import gdc_launch_dependents, gdc_wait, options


@triton.jit
def _rms_norm(
    x, residual, weight, eps, out, hidden: tl.constexpr, ADD: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * hidden
    column = tl.arange(0, BLOCK)
    inside = column < hidden
    scale = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()
    value = tl.load(x + row + column, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        value += tl.load(residual + row + column, mask=inside, other=0.0).to(tl.float32)
        stored = value.to(residual.dtype.element_ty)
        tl.store(residual + row + column, stored, mask=inside)
        value = stored.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(value * value) / hidden + eps)
    tl.store(out + row + column, (value * inverse * scale).to(out.dtype.element_ty), mask=inside)


def rms_norm(x: Tensor, weight: Tensor, eps: float, out: Tensor, overlap: bool = False) -> None:
    """x, out: [tokens, hidden]; weight: [hidden]."""
    _launch(x, x, weight, eps, out, False, overlap)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float, out: Tensor, overlap: bool = False) -> None:
    """residual += x in place; out = norm(residual). x, residual, out: [tokens, hidden]."""
    _launch(x, residual, weight, eps, out, True, overlap)


def _launch(x: Tensor, residual: Tensor, weight: Tensor, eps: float, out: Tensor, add: bool, overlap: bool) -> None:
    tokens, hidden = x.shape
    block = triton.next_power_of_2(hidden)
    num_warps = min(max(block // 512, 1), 16)  # 16 elements a thread: two loads of 16 bytes in flight
    launched = options(num_warps, overlap)
    _rms_norm[(tokens,)](x, residual, weight, eps, out, hidden, add, block, overlap, **launched)
