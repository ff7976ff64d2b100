"""The container format safetensors: where the tensors of one file lie.

Eight bytes of length, so many bytes of JSON, then the tensors. Read here rather than by its library, which gives out
tensors but not their places, and so allows no read straight to where a tensor belongs.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch

from engine.errors import ModelRefused

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000  # the library's own limit
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    name: str
    shape: tuple[int, ...]
    dtype: str  # as the file calls it
    offset: int  # from the start of the file
    num_bytes: int

    def torch_dtype(self) -> torch.dtype:
        if self.dtype not in DTYPES:
            raise ModelRefused(f"tensor {self.name} is of type {self.dtype}; supported: {', '.join(DTYPES)}")
        return DTYPES[self.dtype]


class _Entry(msgspec.Struct):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


class SafetensorsFile:
    """Raises ModelRefused if it is no whole safetensors file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.tensors = _tensors(path)
        except (OSError, ValueError) as error:  # msgspec's errors are ValueErrors
            raise ModelRefused(f"{path.name} cannot be read as safetensors, it may be truncated: {error}") from None


def _tensors(path: Path) -> list[StoredTensor]:
    """In the order of their bytes."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        header_bytes = int.from_bytes(file.read(LENGTH_BYTES), "little")
        start = LENGTH_BYTES + header_bytes
        if start > size or header_bytes > MAX_HEADER_BYTES:
            raise ValueError(f"it has {size} bytes, and its header claims {header_bytes}")
        header = msgspec.json.decode(file.read(header_bytes), type=dict[str, msgspec.Raw])
    header.pop("__metadata__", None)
    tensors = [_checked(name, msgspec.json.decode(raw, type=_Entry), start, size) for name, raw in header.items()]
    return sorted(tensors, key=lambda tensor: tensor.offset)


def _checked(name: str, entry: _Entry, start: int, size: int) -> StoredTensor:
    begin, end = entry.data_offsets
    if start + end > size:
        raise ValueError(f"tensor {name} ends at byte {start + end}, the file at {size}")
    tensor = StoredTensor(name, tuple(entry.shape), entry.dtype, start + begin, end - begin)
    dtype = DTYPES.get(entry.dtype)
    if begin < 0 or end < begin or min(entry.shape, default=0) < 0:
        raise ValueError(f"tensor {name} is of shape {entry.shape} at bytes {begin} to {end}")
    if dtype is not None and math.prod(entry.shape) * dtype.itemsize != tensor.num_bytes:
        raise ValueError(f"tensor {name} is of shape {entry.shape} and type {entry.dtype} in {tensor.num_bytes} bytes")
    return tensor
