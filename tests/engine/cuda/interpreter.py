"""Triton 3.6's interpreter, put right where it is wrong: bfloat16, and scalars with NumPy 2.4."""

from __future__ import annotations

from typing import Any

import numpy as np
import triton.language as tl
from numpy.typing import NDArray
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

BITS = 16  # by which float32 is wider

patch_tensor = interpreter._patch_lang_tensor
convert = interpreter._convert_float


def repair() -> None:
    interpreter._patch_lang_tensor = _patch_tensor
    interpreter._convert_float = _convert
    InterpreterBuilder.create_dot = _dot


def _patch_tensor(tensor: Any, scope: Any) -> None:
    """Scalars are arrays of one element, of which NumPy 2.4 makes no bounds of ranges."""
    patch_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())


def _convert(data: NDArray[Any], source: tl.dtype, target: tl.dtype, rounding: Any) -> NDArray[Any]:
    """It forgets the carry of rounding into the exponent, and that ties go to even."""
    if (source, target) == (tl.bfloat16, tl.float32):
        return _widen(data).view(np.uint32)
    if (source, target) == (tl.float32, tl.bfloat16):
        bits = data.view(np.uint32).astype(np.uint64)
        rounded = (bits + 0x7FFF + (bits >> BITS & 1)) >> BITS
        return np.where(np.isnan(data.view(np.float32)), 0x7FFF, rounded).astype(np.uint16)
    return convert(data, source, target, rounding)


def _dot(self: Any, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: Any) -> TensorHandle:
    """It multiplies the bits of bfloat16 as integers, and adds products of narrow types in what NumPy chooses."""
    wide = [_widen(x.data) if x.dtype.scalar == tl.bfloat16 else x.data.astype(d.data.dtype) for x in (a, b)]
    return TensorHandle(np.matmul(*wide) + d.data, d.dtype.scalar)


def _widen(data: NDArray[np.uint16]) -> NDArray[np.float32]:
    return (data.astype(np.uint32) << BITS).view(np.float32)
