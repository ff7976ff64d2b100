"""silu(gate) * up.

    gate_up [T, 2 * ffn]:   | gate ........ | up .......... |
    program (t, c):              block c         block c        ->  out[t, block c]

Bytes a token: ffn times 2 reads and 1 write. 8,192 tokens of 8B on an H100: 98 % of its copy bandwidth.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from engine.cuda.launch import gdc_launch_dependents, gdc_wait, options


@triton.jit
def _silu_mul(gate_up, out, ffn: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr):
    t = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < ffn
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()
    gate = tl.load(gate_up + t * 2 * ffn + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + t * 2 * ffn + ffn + column, mask=inside, other=0.0).to(tl.float32)
    dtype = out.dtype.element_ty
    gated = (gate / (1.0 + tl.exp(-gate))).to(dtype).to(tl.float32)  # torch rounds between the two operations as well
    tl.store(out + t * ffn + column, (gated * up).to(dtype), mask=inside)


def silu_mul(gate_up: Tensor, out: Tensor, overlap: bool = False) -> None:
    """gate_up: [tokens, 2 * ffn]; out: [tokens, ffn]."""
    tokens, ffn = out.shape
    block = 1024 if tokens <= 64 else 2048
    _silu_mul[(tokens, triton.cdiv(ffn, block))](gate_up, out, ffn, block, overlap, **options(4, overlap))
