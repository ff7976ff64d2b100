"""silu(gate) * up.

    gate_up [T, 2 * ffn]:   | gate ........ | up .......... |
    program (t, c):              block c         block c        ->  out[t, block c]

Bytes a token: ffn times 2 reads and 1 write.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from engine.cuda.launch import ask_for, gdc_launch_dependents, gdc_wait, options, share

NUM_WARPS = tl.constexpr(4)


@triton.jit(do_not_specialize=["ahead_share"])
def _silu_mul(gate_up, out, ahead, ahead_share, ffn: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr):
    t = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < ffn
    if OVERLAP:
        gdc_launch_dependents()
        ask_for(ahead, t * tl.num_programs(1) + tl.program_id(1), ahead_share, NUM_WARPS)
        gdc_wait()
    gate = tl.load(gate_up + t * 2 * ffn + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + t * 2 * ffn + ffn + column, mask=inside, other=0.0).to(tl.float32)
    dtype = out.dtype.element_ty
    gated = (gate / (1.0 + tl.exp(-gate))).to(dtype).to(tl.float32)  # torch rounds between the two operations as well
    tl.store(out + t * ffn + column, (gated * up).to(dtype), mask=inside)


def silu_mul(gate_up: Tensor, out: Tensor, overlap: bool = False, ahead: Tensor | None = None) -> None:
    """gate_up: [tokens, 2 * ffn]; out: [tokens, ffn]; ahead: weights that are read next."""
    tokens, ffn = out.shape
    block = 1024 if tokens <= 64 else 2048
    grid = (tokens, triton.cdiv(ffn, block))
    asked = (ahead, share(ahead, grid[0] * grid[1], overlap))
    _silu_mul[grid](gate_up, out, *asked, ffn, block, overlap, **options(NUM_WARPS.value, overlap))
