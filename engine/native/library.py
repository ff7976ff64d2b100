"""The compiled forward pass (forward.cpp), by the instructions that it is compiled for, and its C structures."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_bool, c_float, c_int32, c_int64, c_void_p
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

from engine.host import cpu_flags

# Best first, each with what a processor must be able to do. `portable` is for any processor, and slow: what the others
# can be compared with.
AVX512 = {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "fma", "f16c"}
VARIANTS = {"avx512_bf16": AVX512 | {"avx512_bf16"}, "avx512_vnni": AVX512, "avx2": {"avx2", "fma", "f16c"}}
PORTABLE = "portable"


class Linear(ctypes.Structure):
    _fields_ = (
        ("tiles", c_void_p),
        ("bias", c_void_p),
        ("inputs", c_int32),
        ("outputs", c_int32),
        ("bits", c_int32),
    )


class Layer(ctypes.Structure):
    _fields_ = (
        ("attn_norm", c_void_p),
        ("ffn_norm", c_void_p),
        ("q_norm", c_void_p),
        ("k_norm", c_void_p),
        ("qkv", Linear),
        ("o", Linear),
        ("gate_up", Linear),
        ("down", Linear),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("window", c_int32),
        ("rotates", c_int32),
    )


class Shape(ctypes.Structure):
    _fields_ = (
        *((name, c_int32) for name in ("heads", "kv_heads", "head_dim", "block_size")),
        *((name, c_int32) for name in ("hidden", "ffn", "num_layers", "max_tokens", "threads")),
        ("eps", c_float),
    )


class Step(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("ids", "positions", "slots", "starts", "kv_lens", "tables", "asked")),
        *((name, c_int32) for name in ("tokens", "seqs", "table_width", "num_asked")),
    )


def best() -> str | None:
    """The variant for this processor, of those that are compiled."""
    flags = cpu_flags()
    return next((name for name, needed in VARIANTS.items() if needed <= flags and path_of(name) is not None), None)


def could_run() -> bool:
    """Some variant, were it compiled."""
    return any(needed <= cpu_flags() for needed in VARIANTS.values())


def runnable() -> list[str]:
    """All variants that run here."""
    flags = cpu_flags()
    found = [name for name, needed in VARIANTS.items() if needed <= flags]
    return [name for name in (*found, PORTABLE) if path_of(name) is not None]


def path_of(variant: str) -> Path | None:
    """None: it is not compiled; there was no compiler, or it is for another kind of processor."""
    paths = (Path(__file__).with_name(f"_{variant}{suffix}") for suffix in EXTENSION_SUFFIXES)
    return next((path for path in paths if path.exists()), None)


@cache
def library(variant: str) -> Any:
    path = path_of(variant)
    if path is None:
        raise FileNotFoundError(f"engine/native is not compiled for {variant}")
    found = ctypes.CDLL(str(path))
    found.headrace_packed_bytes.restype = c_int64
    found.headrace_packed_bytes.argtypes = (c_int32, c_int32, c_int32)
    found.headrace_pack.restype = None
    found.headrace_pack.argtypes = (c_void_p, c_void_p, c_void_p, c_int32, c_int32, c_int32, c_int32, c_void_p)
    found.headrace_pack_blocks.restype = c_bool
    found.headrace_pack_blocks.argtypes = (
        *(c_void_p, c_int32, c_void_p),
        *(c_int32, c_int32, c_int32, c_int32, c_void_p),
    )
    found.headrace_draw.restype = None
    found.headrace_draw.argtypes = (c_void_p, c_void_p, c_void_p, c_int32, c_int32, c_float, c_void_p)
    found.headrace_model.restype = c_void_p
    found.headrace_model.argtypes = (
        POINTER(Shape),
        POINTER(Layer),
        POINTER(Linear),
        POINTER(Linear),
        c_void_p,
        c_void_p,
        c_void_p,
    )
    found.headrace_free.restype = None
    found.headrace_free.argtypes = (c_void_p,)
    found.headrace_forward.restype = None
    found.headrace_forward.argtypes = (c_void_p, POINTER(Step), c_void_p)
    found.headrace_head.restype = None
    found.headrace_head.argtypes = (c_void_p, c_void_p, c_int32, c_void_p)
    return found
