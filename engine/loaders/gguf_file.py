"""The container format GGUF: where its tensors lie, and the scalars among its metadata.

Read here rather than by gguf.GGUFReader, which takes seconds over a vocabulary that the engine has no use for, and
follows a corrupt file's lengths wherever they lead. Format: docs/gguf.md of the ggml project, versions 2 and 3.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.errors import ModelRefused
from engine.loaders.gguf_kinds import BLOCKS, Kind

Scalar = int | float | bool | str

VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_DIMENSIONS = 4
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class GgufTensor:
    name: str
    shape: tuple[int, ...]  # rows first, as torch has it
    kind: Kind
    offset: int  # from the start of the file
    num_bytes: int


class GgufFile:
    """Maps the file; tensors are read as they are asked for. Raises ModelRefused if it is no whole GGUF file."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        try:
            self._data: NDArray[np.uint8] = np.memmap(path, np.uint8, mode="r")
            self.scalars, tensors = _header(_Cursor(self._data.data))
        except (OSError, ValueError, struct.error, OverflowError) as error:
            raise ModelRefused(f"{self.name} cannot be read as GGUF, it may be truncated: {error}") from None
        self.tensors = {tensor.name: tensor for tensor in tensors}
        self._check_complete()

    def raw(self, tensor: GgufTensor) -> NDArray[np.uint8]:
        """Its bytes in the file."""
        return self._data[tensor.offset : tensor.offset + tensor.num_bytes]

    def values(self, tensor: GgufTensor) -> NDArray[np.float32]:
        """The tensor in float32, writable."""
        if tensor.kind == Kind.F32:
            return np.array(self.raw(tensor).view("<f4").reshape(tensor.shape))
        from gguf import quants
        from gguf.constants import GGMLQuantizationType

        try:
            kind = GGMLQuantizationType(tensor.kind)
            blocks = self.raw(tensor).reshape(quants.quant_shape_to_byte_shape(tensor.shape, kind))
            return np.require(quants.dequantize(blocks, kind), np.float32, "W")
        except (NotImplementedError, ValueError) as error:
            raise ModelRefused(f"tensor {tensor.name} is quantised as {tensor.kind.name}: {error}") from None

    def _check_complete(self) -> None:
        for tensor in self.tensors.values():
            end = tensor.offset + tensor.num_bytes
            if end > len(self._data):
                raise ModelRefused(
                    f"{self.name} is truncated: tensor {tensor.name} ends at byte {end}, the file at {len(self._data)}"
                )


class _Cursor:
    def __init__(self, data: memoryview) -> None:
        self._data = data
        self.at = 0

    def take(self, size: int) -> memoryview:
        start, self.at = self.at, self.at + size
        if self.at > len(self._data):
            raise ValueError(f"its header ends {self.at - len(self._data)} bytes early")
        return self._data[start : self.at]

    def number(self, code: str) -> int | float | bool:
        value: int | float | bool = struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]
        return value

    def count(self) -> int:
        return int(self.number("Q"))

    def string(self) -> str:
        return bytes(self.take(self.count())).decode()

    def scalar(self, kind: int) -> Scalar:
        if kind == STRING:
            return self.string()
        if kind not in NUMBERS:
            raise ValueError(f"a value has the unknown type {kind}")
        return self.number(NUMBERS[kind])

    def skip_array(self) -> None:
        """Vocabularies and the like: the gateway's business."""
        kind, count = int(self.number("I")), self.count()
        if kind == STRING:
            self._skip_strings(count)
        elif kind in NUMBERS:
            self.take(count * struct.calcsize("<" + NUMBERS[kind]))
        else:
            raise ValueError(f"an array has the unknown type {kind}")

    def _skip_strings(self, count: int) -> None:
        """A hundred thousand, in a vocabulary with its merges."""
        data, at, length = self._data, self.at, struct.Struct("<Q").unpack_from
        for _ in range(count):
            at += 8 + length(data, at)[0]  # raises struct.error behind the end
        self.at = at
        self.take(0)


def _header(cursor: _Cursor) -> tuple[dict[str, Scalar], list[GgufTensor]]:
    if bytes(cursor.take(4)) != b"GGUF":
        raise ValueError("it does not begin with 'GGUF'")
    version = cursor.number("I")
    if version not in VERSIONS:
        raise ValueError(f"its version is {version}; 2 and 3 are known")
    num_tensors, num_pairs = cursor.count(), cursor.count()
    scalars: dict[str, Scalar] = {}
    for _ in range(num_pairs):
        key, kind = cursor.string(), int(cursor.number("I"))
        if kind == ARRAY:
            cursor.skip_array()
        else:
            scalars[key] = cursor.scalar(kind)
    infos = list(_tensor_infos(cursor, num_tensors))
    alignment = int(scalars.get("general.alignment", DEFAULT_ALIGNMENT))
    if alignment < 1:
        raise ValueError(f"its alignment is {alignment}")
    start = -(-cursor.at // alignment) * alignment
    return scalars, [GgufTensor(name, shape, kind, start + at, size) for name, shape, kind, at, size in infos]


def _tensor_infos(cursor: _Cursor, count: int) -> Iterator[tuple[str, tuple[int, ...], Kind, int, int]]:
    """(name, shape, kind, offset from the start of the data, bytes)."""
    for _ in range(count):
        name, dimensions = cursor.string(), int(cursor.number("I"))
        if dimensions > MAX_DIMENSIONS:
            raise ValueError(f"tensor {name} has {dimensions} dimensions")
        shape = tuple(cursor.count() for _ in range(dimensions))[::-1]
        kind = Kind(int(cursor.number("I")))
        per_block, block_bytes = BLOCKS[kind]
        num_values = int(np.prod(shape, dtype=object))
        yield name, shape, kind, cursor.count(), num_values // per_block * block_bytes
