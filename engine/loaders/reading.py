"""Bytes of files to where they belong, by several threads at once: what keeps a fast disk, or the page cache, busy.

    CPU, same type:     file --read--> destination
    CPU, other type:    file --read--> a thread's buffer --convert--> destination
    GPU:                file --read--> a thread's pinned buffer --copy, convert--> destination

Beside the destinations there is one buffer of PIECE_BYTES a thread. Plain reads rather than mapped files: no page
faults, and a disk error is an exception instead of a signal.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from engine.errors import ModelRefused
from engine.loaders.checkpoint import Report
from engine.models.shards import Part

PIECE_BYTES = 8 << 20
MAX_THREADS = 8


@dataclass(frozen=True, slots=True)
class Read:
    """One tensor, or a part of it: where it is, and where it goes."""

    path: Path
    offset: int
    dtype: torch.dtype  # in the file
    view: Tensor  # contiguous
    part: Part | None = None  # None: all of it


def read_all(reads: Sequence[Read], device: torch.device, report: Report) -> None:
    """In the order given. Raises ModelRefused, naming the file, where one cannot be read."""
    reads = [each for read in reads for each in _ranges(read)]
    done, total = 0, sum(_num_read(read) * read.dtype.itemsize for read in reads)
    with ExitStack() as stack:
        files = {path: stack.enter_context(_open(path)) for path in dict.fromkeys(read.path for read in reads)}
        readers = _Readers(files, device)
        pool = stack.enter_context(ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1), "reader"))
        for size in pool.map(readers.read, _pieces(reads)):  # where one fails, those that have not begun are dropped
            done += size
            report(done, total)


def _ranges(read: Read) -> Iterator[Read]:
    """Of rows: each lies in one piece. Columns are read with what is beside them."""
    if read.part is None or read.part.dim:
        yield read
        return
    row, at = math.prod(read.part.shape[1:]), 0
    for start, end in read.part.ranges:
        offset = read.offset + start * row * read.dtype.itemsize
        yield Read(read.path, offset, read.dtype, read.view[at : at + end - start])
        at += end - start


def _num_read(read: Read) -> int:
    return read.view.numel() if read.part is None else math.prod(read.part.shape)


def _pieces(reads: Sequence[Read]) -> Iterator[Read]:
    for read in reads:
        if read.part is not None:
            yield from _rows(read, read.part)
            continue
        flat, size = read.view.view(-1), read.dtype.itemsize
        for start in range(0, len(flat), PIECE_BYTES // size):
            part = flat[start : start + PIECE_BYTES // size]
            yield Read(read.path, read.offset + start * size, read.dtype, part)


def _rows(read: Read, part: Part) -> Iterator[Read]:
    """Of which some columns are wanted."""
    num_rows, columns = part.shape
    size = columns * read.dtype.itemsize
    step = max(PIECE_BYTES // size, 1)
    for start in range(0, num_rows, step):
        view = read.view[start : start + step]
        rows = replace(part, shape=(len(view), columns))
        yield Read(read.path, read.offset + start * size, read.dtype, view, rows)


class _Readers:
    """What the threads do."""

    def __init__(self, files: dict[Path, BinaryIO], device: torch.device) -> None:
        self._files = files
        self._pinned = device.type == "cuda"
        self._own = threading.local()

    def read(self, piece: Read) -> int:
        """Bytes of the file."""
        view = piece.view
        if piece.part is not None:
            return self._read_columns(piece, piece.part)
        if view.device.type == "cpu" and view.dtype == piece.dtype:
            return self._fill(piece, view.view(torch.uint8))
        values = self._buffer()[: len(view) * piece.dtype.itemsize]
        size = self._fill(piece, values)
        values = values.view(piece.dtype)
        # A GPU converts on its own side. The copy has ended when copy_ returns, so the buffer may be written again.
        view.copy_(values if view.dtype == piece.dtype else values.to(view.device))
        return size

    def _read_columns(self, piece: Read, part: Part) -> int:
        num_bytes = math.prod(part.shape) * piece.dtype.itemsize
        values = self._buffer(num_bytes)[:num_bytes]
        size = self._fill(piece, values)
        wanted = part.of(values.view(piece.dtype).view(part.shape))
        piece.view.copy_(wanted if piece.view.dtype == piece.dtype else wanted.to(piece.view.device))
        return size

    def _fill(self, piece: Read, target: Tensor) -> int:
        """target: [bytes] uint8 on the CPU."""
        memory, at = target.numpy().data, 0
        while at < len(memory):
            try:
                count = os.preadv(self._files[piece.path].fileno(), [memory[at:]], piece.offset + at)
            except OSError as error:
                raise ModelRefused(f"{piece.path.name} cannot be read: {error.strerror}") from None
            if count == 0:
                raise ModelRefused(f"{piece.path.name} has been truncated while it was read")
            at += count
        return at

    def _buffer(self, num_bytes: int = PIECE_BYTES) -> Tensor:
        if not hasattr(self._own, "buffer") or len(self._own.buffer) < num_bytes:
            self._own.buffer = torch.empty(max(num_bytes, PIECE_BYTES), dtype=torch.uint8, pin_memory=self._pinned)
        buffer: Tensor = self._own.buffer
        return buffer


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb", buffering=0)
    except OSError as error:
        raise ModelRefused(f"{path.name} cannot be read: {error.strerror}") from None
