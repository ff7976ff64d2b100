"""How kernels of one step follow each other.

Programmatic dependent launch: a kernel that starts while the one before it ends.

    one kernel:   launch_dependents, what does not depend on the kernel before | wait | the rest

The next kernel's programs may start once all of this one's have; they find room as this one's end. Every kernel that is
launched so waits for the whole of the one before it, so that when one has ended, all before it have. Kernels launched
without it wait before they start.

Weights ahead: while a small kernel between two products runs, memory is idle. So its programs ask L2 for the first
megabytes of what the next product reads; whoever multiplies, cuBLAS included, finds them there.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

__all__ = ["ask_for", "gdc_launch_dependents", "gdc_wait", "options", "share"]

AHEAD_BYTES = 8 << 20  # about what memory delivers in 3 microseconds
ASKERS = tl.constexpr(128)  # programs, of each the first warp
MANY_PROGRAMS = 8192  # so many keep memory busy themselves
LINE = 128


def options(num_warps: int, overlap: bool) -> dict[str, Any]:
    """Of a launch; the interpreter knows no launch_pdl."""
    return {"num_warps": num_warps, "launch_pdl": True} if overlap else {"num_warps": num_warps}


def share(weight: Tensor | None, num_programs: int, overlap: bool) -> int:
    """Bytes of the weight that each asking thread of a launch asks for; 0: none."""
    if weight is None or not overlap or num_programs > MANY_PROGRAMS:
        return 0
    total = min(AHEAD_BYTES, weight.numel() * weight.element_size())
    askers = min(num_programs, int(ASKERS.value))
    return total // (askers * 32 * LINE) * LINE


@triton.jit
def ask_for(weight, program, size, NUM_WARPS: tl.constexpr):
    """Has L2 fetch the program's bytes of the weight: PTX ISA, cp.async.bulk.prefetch."""
    if (weight is not None) and (size > 0 and program < ASKERS):
        threads: tl.constexpr = NUM_WARPS * 32
        thread = tl.arange(0, threads)
        at = weight.to(tl.pointer_type(tl.uint8)) + (program * 32 + thread).to(tl.int64) * size
        tl.inline_asm_elementwise(
            """{
            .reg .pred asks;
            setp.gt.s32 asks, $2, 0;
            @asks cp.async.bulk.prefetch.L2.global [$1], $2;
            mov.b32 $0, 0;
            }""",
            "=r,l,r",
            [at, tl.where(thread < 32, size, 0)],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
