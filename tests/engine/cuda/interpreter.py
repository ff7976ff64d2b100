"""Triton 3.6's interpreter, put right where it is wrong: bfloat16, and scalars with NumPy 2.4. And where it is slow: it
replaces the language's functions at each call, and computes what only its debug mode looks at."""

from __future__ import annotations

from types import FunctionType, SimpleNamespace
from typing import Any

import numpy as np
import triton.language as tl
from numpy.typing import NDArray
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

BITS = 16  # by which float32 is wider

patch_tensor = interpreter._patch_lang_tensor
patch_language = interpreter._patch_lang
convert = interpreter._convert_float
numpy_type = interpreter._get_np_dtype
numpy_types: dict[str, np.dtype[Any]] = {}


def repair() -> None:
    interpreter._patch_lang_tensor = _patch_tensor
    interpreter._convert_float = _convert
    InterpreterBuilder.create_dot = _dot


def hasten() -> None:
    """For a process that compiles nothing; once, after `repair`."""
    patch_language(SimpleNamespace(__globals__={"language": tl, "core": tl.core}))
    interpreter._patch_lang = _nothing_to_patch
    interpreter._get_np_dtype = _numpy_type
    assert not interpreter.interpreter_builder.options.debug
    TritonSemantic.binary_op_sanitize_overflow_impl = lambda *operands: None


def _nothing_to_patch(fn: FunctionType) -> Any:
    """The language is that of the interpreter already, and stays so."""
    return interpreter._LangPatchScope()


def _numpy_type(kind: Any) -> np.dtype[Any]:
    """It makes a table of all types each time."""
    element = kind.element_ty if isinstance(kind, tl.block_type) else kind
    name = "pointer" if isinstance(element, tl.pointer_type) else element.name
    if name not in numpy_types:
        numpy_types[name] = numpy_type(kind)
    return numpy_types[name]


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
