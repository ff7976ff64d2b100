"""Programmatic dependent launch: a kernel that starts while the one before it ends.

    one kernel:   launch_dependents, what does not depend on the kernel before | wait | the rest

The next kernel's programs may start once all of this one's have; they find room as this one's end. Every kernel that is
launched so waits for the whole of the one before it, so that when one has ended, all before it have. Kernels launched
without it wait before they start.
"""

from __future__ import annotations

from typing import Any

from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

__all__ = ["gdc_launch_dependents", "gdc_wait", "options"]


def options(num_warps: int, overlap: bool) -> dict[str, Any]:
    """Of a launch; the interpreter knows no launch_pdl."""
    return {"num_warps": num_warps, "launch_pdl": True} if overlap else {"num_warps": num_warps}
