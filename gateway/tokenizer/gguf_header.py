"""The metadata of a GGUF file, without its tensors.

gguf.GGUFReader makes several arrays of every string: 3 s for a vocabulary of 49,152, and this 0.1 s. It also follows
a corrupt file's lengths wherever they lead; here each is compared with what is left of the file first.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from gateway.errors import ModelError

Scalar = int | float | bool | str
Value = Scalar | list[Scalar]
Metadata = dict[str, Value]

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_VERSIONS = (2, 3)


def read_metadata(path: Path) -> Metadata:
    """All key-value pairs. Raises ModelError if the file is no GGUF file or ends early."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _metadata(_Cursor(data))
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or error}") from error
    except (ValueError, struct.error) as error:  # an empty file cannot be mapped: ValueError
        raise ModelError(f"{path} is not a usable GGUF file: {error}") from error


def _metadata(cursor: _Cursor) -> Metadata:
    if cursor.take(4) != b"GGUF":
        raise ValueError("it does not begin with 'GGUF'")
    version = cursor.number("I")
    if version not in _VERSIONS:
        raise ValueError(f"its version is {version}, and only 2 and 3 (little endian) are known")
    cursor.number("Q")  # number of tensors
    return {cursor.string(): cursor.value() for _ in range(int(cursor.number("Q")))}


class _Cursor:
    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int) -> bytes:
        start, end = self._at, self._at + size
        if end > len(self._data):
            raise ValueError(f"it ends within its metadata, {end - len(self._data)} bytes early")
        self._at = end
        return self._data[start:end]

    def number(self, code: str) -> int | float | bool:
        return self.numbers(code, 1)[0]

    def numbers(self, code: str, count: int) -> tuple[int | float | bool, ...]:
        layout = f"<{count}{code}"
        return struct.unpack(layout, self.take(struct.calcsize(layout)))

    def string(self) -> str:
        return self.take(int(self.number("Q"))).decode()

    def value(self) -> Value:
        kind = int(self.number("I"))
        return self._array() if kind == _ARRAY else self._scalar(kind)

    def _scalar(self, kind: int) -> Scalar:
        if kind == _STRING:
            return self.string()
        return self.number(_code(kind))

    def _array(self) -> list[Scalar]:
        kind, count = int(self.number("I")), int(self.number("Q"))
        if kind == _STRING:
            return self._strings(count)
        return list(self.numbers(_code(kind), count))

    def _strings(self, count: int) -> list[Scalar]:
        """A hundred thousand, in a vocabulary with its merges: in a third of the time that string() would take."""
        data, at, length = self._data, self._at, struct.Struct("<Q").unpack_from
        size, found = len(data), list[Scalar]()
        for _ in range(count):
            start = at + 8
            at = start + length(data, at)[0]  # raises struct.error behind the end
            if at > size:
                break
            found.append(data[start:at].decode())
        self._at = at
        self.take(0)
        return found


def _code(kind: int) -> str:
    if kind not in _NUMBERS:
        raise ValueError(f"a value has the unknown type {kind}")
    return _NUMBERS[kind]
