"""Seeded random weights for a config.json: tests and benchmarks of any shape without a download.

Each number is a pure function of seed, tensor name and place, made of integer operations and of float32 operations that
round at most once, so that every device makes the same bits. It is made where it belongs: nothing passes through the
host's memory, and the temporary memory is bounded.
    key   = splitmix64(crc32(name) + seed * 0x9E3779B97F4A7C15)          64 bits
    h     = mix(place * (high32(key) | 1) + low32(key))                  32 bits; mix as in engine.noise, products wrap
    value = ((h as a signed number >> 8) + 1/2) * float32(0.02 * sqrt(12) / 2**24)     uniform, standard deviation 0.02
`place` counts the tensor's elements row by row. Weights of norms are 1.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.loaders.checkpoint import Report
from engine.loaders.safetensors import read_json
from engine.models.family import read_config
from engine.models.shards import WHOLE, Part, Parts
from engine.noise import MIX_1, MIX_2, row_key

STD = 0.02  # the usual initialisation of these families
SCALE = float(np.float32(STD * math.sqrt(12) / 2**24))
CPU_CHUNK = 1 << 15  # elements at a time: what caches hold, and torch computes with one thread, without waits
GPU_CHUNK = 1 << 22
LAYER_NORMS = ("ln_1.weight", "ln_2.weight", "ln_f.weight")  # of GPT-2


class DummyCheckpoint:
    rope_factors: Tensor | None = None

    def __init__(self, folder: Path, seed: int) -> None:
        self.spec: Any = read_config(read_json(folder / "config.json"))
        self._seed = seed

    def read_into(self, table: Mapping[str, Tensor], report: Report, parts: Parts = WHOLE) -> None:
        done, total = 0, sum(view.nbytes for view in table.values())
        rng: _Generator | None = None
        for name, view in table.items():
            if "norm" in name or name.endswith(LAYER_NORMS):
                view.fill_(1)
            else:
                rng = rng or _Generator(view.device)
                rng.fill_part(view, self._seed, name, parts.get(name))
            done += view.nbytes
            report(done, total)


class _Generator:
    """The buffers of one device."""

    def __init__(self, device: torch.device) -> None:
        self._chunk = CPU_CHUNK if device.type == "cpu" else GPU_CHUNK
        self._places = torch.arange(self._chunk, dtype=torch.int32, device=device)
        self._x = torch.empty_like(self._places)
        self._shifted = torch.empty_like(self._places)
        self._values = torch.empty(self._chunk, dtype=torch.float32, device=device)

    def fill_part(self, view: Tensor, seed: int, name: str, part: Part | None) -> None:
        """The numbers that these places of the whole tensor have."""
        if part is None:
            self.fill(view.view(-1), seed, name)
        elif part.dim == 0:
            row, at = math.prod(part.shape[1:]), 0
            for start, end in part.ranges:
                self.fill(view[at : at + end - start].view(-1), seed, name, start * row)
                at += end - start
        else:
            self._fill_columns(view, seed, name, part)

    def _fill_columns(self, view: Tensor, seed: int, name: str, part: Part) -> None:
        num_rows, columns = part.shape
        step = max(self._chunk // columns, 1)
        rows = torch.empty(min(step, num_rows), columns, dtype=view.dtype, device=view.device)
        for start in range(0, num_rows, step):
            some = rows[: min(step, num_rows - start)]
            self.fill(some.view(-1), seed, name, start * columns)
            view[start : start + len(some)] = part.of(some)

    def fill(self, view: Tensor, seed: int, name: str, first: int = 0) -> None:
        """view: [elements], of any floating type, from place `first` on."""
        low, high = row_key(zlib.crc32(name.encode()), seed)
        factor = high | 1
        for start in range(0, len(view), self._chunk):
            part = view[start : start + self._chunk]
            count = len(part)
            x, shifted, values = self._x[:count], self._shifted[:count], self._values[:count]
            torch.mul(self._places[:count], _signed(factor), out=x)
            x += _signed((first + start) * factor + low)
            _mix(x, shifted)
            torch.bitwise_right_shift(x, 8, out=shifted)
            values.copy_(shifted)
            values += 0.5
            values *= SCALE
            part.copy_(values)


def _mix(x: Tensor, shifted: Tensor) -> None:
    """In place, on int32 as if unsigned. shifted: memory of the same shape."""
    for bits, factor in ((16, MIX_1), (15, MIX_2)):
        _fold(x, bits, shifted)
        x *= _signed(factor)
    _fold(x, 16, shifted)


def _fold(x: Tensor, bits: int, shifted: Tensor) -> None:
    """x ^= x >> bits. torch shifts the sign in, which the mask takes off again."""
    torch.bitwise_right_shift(x, bits, out=shifted)
    shifted &= (1 << (32 - bits)) - 1
    x ^= shifted


def _signed(value: int) -> int:
    """The low 32 bits as an int32."""
    return ((value & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000
