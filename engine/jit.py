"""How the CPU kernels are compiled: numba options, and reading bfloat16, which numba does not know."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numba
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray
from torch import Tensor

log = logging.getLogger("headrace.jit")
# Reordered sums and fused multiply-adds, but infinities and NaN keep their meaning.
FAST: frozenset[str] = frozenset({"reassoc", "contract", "arcp", "nsz"})


def kernel(*, parallel: bool, exact: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compiled at first call, then kept on disk (NUMBA_CACHE_DIR). exact: floats round as written, so that results can
    be compared bit for bit."""
    options: dict[str, Any] = {
        "parallel": parallel,
        "fastmath": set() if exact else set(FAST),
        "boundscheck": False,
        "nogil": True,
        "error_model": "numpy",
    }

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            kept: Callable[..., Any] = numba.njit(cache=True, **options)(function)
        except RuntimeError as error:  # no folder may be written: each start compiles anew
            log.debug("not kept: %s", error)
            kept = numba.njit(**options)(function)
        return kept

    return decorate


def _widen(typing_context: Any, x: Any) -> Any:
    """float32 from float32, or from a bfloat16's bits (uint16), which are the upper half of the same float32."""

    def same(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return arguments[0]

    def upper_half(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = ir.IntType(32)
        bits = builder.shl(builder.zext(arguments[0], word), ir.Constant(word, 16))
        return builder.bitcast(bits, ir.FloatType())

    return types.float32(x), upper_half if x == types.uint16 else same


widen: Any = intrinsic(_widen)


def as_array(tensor: Tensor) -> NDArray[Any]:
    """The same memory as numpy sees it; bfloat16 as its uint16 bits."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy()
    return tensor.numpy()
