"""Quantised blocks of GGUF as codes: w = scale * code + least, for each 32 weights of a row.

Codes are unsigned, of 4 or 8 bits; scales and least are halves. Formats of which that holds are taken as they are
(Q4_0, Q4_1, Q5_0, Q5_1, Q8_0) or within the rounding of a half (Q4_K). Any other tensor is quantised anew, to 8 bits.
Formats: ggml-common.h and ggml-quants.c of the ggml project.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.loaders.gguf_kinds import Kind

GROUP = 32
# Formats of 32 weights a block that engine/native reads itself, and the bits of their codes.
SIMPLE = {Kind.Q4_0: 4, Kind.Q4_1: 4, Kind.Q5_0: 8, Kind.Q5_1: 8, Kind.Q8_0: 8}
HALF = np.dtype("<f2")


@dataclass(frozen=True, slots=True)
class Codes:
    codes: NDArray[np.uint8]  # [rows, inputs]
    scales: NDArray[np.float16]  # [rows, inputs / 32]
    least: NDArray[np.float16]
    bits: int  # 4 or 8

    def rows(self, order: NDArray[np.int64]) -> Codes:
        return Codes(self.codes[order], self.scales[order], self.least[order], self.bits)

    def values(self) -> NDArray[np.float32]:
        """[rows, inputs]"""
        groups = self.codes.reshape(*self.scales.shape, GROUP).astype(np.float32)
        found = groups * self.scales[..., None].astype(np.float32) + self.least[..., None].astype(np.float32)
        return found.reshape(self.codes.shape)


@dataclass(frozen=True, slots=True)
class Blocks:
    """A matrix as a file has it, in one of the SIMPLE formats."""

    raw: NDArray[np.uint8]
    kind: Kind
    shape: tuple[int, int]  # rows, inputs
    order: NDArray[np.int64] | None = None  # which row each is to be; None: as they are

    @property
    def bits(self) -> int:
        return SIMPLE[self.kind]

    def codes(self) -> Codes:
        found = READERS[self.kind](self.raw, self.shape)
        return found if self.order is None else found.rows(self.order)


def quantise(values: NDArray[np.float32]) -> Codes:
    """To 8 bits, between the least and the largest of each group. values: [rows, inputs]"""
    groups = values.reshape(len(values), -1, GROUP)
    least = groups.min(-1).astype(HALF)
    # Rounded up: what is largest must still have a code.
    scales = np.nextafter(((groups.max(-1) - least.astype(np.float32)) / 255).astype(HALF), HALF.type(np.inf))
    steps = scales.astype(np.float32)[..., None]
    codes = np.rint((groups - least.astype(np.float32)[..., None]) / np.where(steps > 0, steps, 1))
    return Codes(codes.clip(0, 255).astype(np.uint8).reshape(values.shape), scales, least, 8)


def codes_of(raw: NDArray[np.uint8], kind: Kind, shape: tuple[int, ...]) -> Codes | None:
    """raw: the tensor's bytes. None: the format is none of these."""
    if kind not in READERS or shape[-1] % GROUP:
        return None
    return READERS[kind](raw, shape)


def _blocks(raw: NDArray[np.uint8], num_bytes: int) -> NDArray[np.uint8]:
    return raw.reshape(-1, num_bytes)


def _half(blocks: NDArray[np.uint8], at: int) -> NDArray[np.float16]:
    """[blocks]"""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view(HALF)[:, 0]


def _nibbles(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The low ones, then the high ones. packed: [.., n]; returns [.., 2 n]"""
    return np.concatenate((packed & 15, packed >> 4), axis=-1)


def _fifth_bits(blocks: NDArray[np.uint8], at: int) -> NDArray[np.uint8]:
    """[blocks, 32], each 0 or 16."""
    return np.unpackbits(blocks[:, at : at + 4], axis=1, bitorder="little") * np.uint8(16)


def _codes(
    codes: NDArray[np.uint8], scales: NDArray[np.float16], least: NDArray[np.float16], bits: int, shape: tuple[int, ...]
) -> Codes:
    groups = (*shape[:-1], shape[-1] // GROUP)
    return Codes(codes.reshape(shape), scales.reshape(groups), least.reshape(groups), bits)


def _centred(
    codes: NDArray[np.uint8], scales: NDArray[np.float16], centre: int, bits: int, shape: tuple[int, ...]
) -> Codes:
    """Of w = scale * (code - centre), centre a power of two: exact in a half."""
    return _codes(codes, scales, scales * HALF.type(-centre), bits, shape)


def _q4_0(raw: NDArray[np.uint8], shape: tuple[int, ...]) -> Codes:
    blocks = _blocks(raw, 18)
    return _centred(_nibbles(blocks[:, 2:]), _half(blocks, 0), 8, 4, shape)


def _q4_1(raw: NDArray[np.uint8], shape: tuple[int, ...]) -> Codes:
    blocks = _blocks(raw, 20)
    return _codes(_nibbles(blocks[:, 4:]), _half(blocks, 0), _half(blocks, 2), 4, shape)


def _q5_0(raw: NDArray[np.uint8], shape: tuple[int, ...]) -> Codes:
    blocks = _blocks(raw, 22)
    return _centred(_nibbles(blocks[:, 6:]) | _fifth_bits(blocks, 2), _half(blocks, 0), 16, 8, shape)


def _q5_1(raw: NDArray[np.uint8], shape: tuple[int, ...]) -> Codes:
    blocks = _blocks(raw, 24)
    return _codes(_nibbles(blocks[:, 8:]) | _fifth_bits(blocks, 4), _half(blocks, 0), _half(blocks, 2), 8, shape)


def _q8_0(raw: NDArray[np.uint8], shape: tuple[int, ...]) -> Codes:
    blocks = _blocks(raw, 34)
    return _centred(blocks[:, 2:] ^ np.uint8(128), _half(blocks, 0), 128, 8, shape)


def _q4_k(raw: NDArray[np.uint8], shape: tuple[int, ...]) -> Codes:
    """Super-blocks of 8 groups, whose scales and minima have 6 bits each, times a half for all."""
    blocks = _blocks(raw, 144)
    packed = blocks[:, 4:16]
    low_scales, low_least, rest = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate((low_scales & 63, rest & 15 | (low_scales >> 6) << 4), axis=1)
    least = np.concatenate((low_least & 63, rest >> 4 | (low_least >> 6) << 4), axis=1)
    of_scales, of_least = (_half(blocks, at).astype(np.float32)[:, None] for at in (0, 2))
    codes = _nibbles(blocks[:, 16:].reshape(-1, 4, GROUP))
    return _codes(codes, (of_scales * scales).astype(HALF), (-of_least * least).astype(HALF), 4, shape)


READERS: dict[Kind, Callable[[NDArray[np.uint8], tuple[int, ...]], Codes]] = {
    Kind.Q4_0: _q4_0,
    Kind.Q4_1: _q4_1,
    Kind.Q5_0: _q5_0,
    Kind.Q5_1: _q5_1,
    Kind.Q8_0: _q8_0,
    Kind.Q4_K: _q4_k,
}
