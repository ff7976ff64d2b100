"""A GGUF checkpoint's weights for forward.cpp: codes in tiles, norms and biases in float32."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.loaders.blocks import GROUP, Blocks, Codes
from engine.loaders.checkpoint import Report
from engine.loaders.gguf import GgufCheckpoint
from engine.models.spec import ModelSpec
from engine.native import library
from engine.pages import zero_pages

LANES = 16
ALIGN = 64
ARENA_BYTES = 64 << 20


@dataclass(slots=True)
class Matrix:
    """tiles: as linear.hpp has them; bias: [outputs] float32, or none; outputs: padded to a multiple of 16."""

    tiles: NDArray[np.uint8]
    bias: NDArray[np.float32] | None
    inputs: int
    outputs: int
    bits: int

    def struct(self) -> library.Linear:
        return library.Linear(self.tiles.ctypes.data, address(self.bias), self.inputs, self.outputs, self.bits)


@dataclass(slots=True)
class NativeLayer:
    attn_norm: NDArray[np.float32]
    ffn_norm: NDArray[np.float32]
    q_norm: NDArray[np.float32] | None
    k_norm: NDArray[np.float32] | None
    qkv: Matrix
    o: Matrix
    gate_up: Matrix
    down: Matrix


@dataclass(slots=True)
class NativeWeights:
    embed: Matrix
    head: Matrix  # the embedding itself where tied
    final_norm: NDArray[np.float32]
    layers: list[NativeLayer] = field(default_factory=list)

    @property
    def matrices(self) -> list[Matrix]:
        """Each once."""
        found = [self.embed] if self.head is self.embed else [self.embed, self.head]
        for layer in self.layers:
            found += [layer.qkv, layer.o, layer.gate_up, layer.down]
        return found

    @property
    def num_bytes(self) -> int:
        return sum(matrix.tiles.nbytes for matrix in self.matrices)

    @property
    def dtype(self) -> str:
        """For people."""
        return "int" + " and int".join(str(bits) for bits in sorted({matrix.bits for matrix in self.matrices}))


def address(array: NDArray[Any] | None) -> int | None:
    return None if array is None else array.ctypes.data


class Arena:
    """Memory for tiles."""

    def __init__(self) -> None:
        self._room = np.empty(0, np.uint8)

    def take(self, num_bytes: int) -> NDArray[np.uint8]:
        """Zeros, from the start of a cache line on."""
        padded = -(-num_bytes // ALIGN) * ALIGN
        if padded > len(self._room):
            self._room = zero_pages(max(padded, ARENA_BYTES))
        taken, self._room = self._room[:num_bytes], self._room[padded:]
        return taken


def pack(parts: Sequence[Codes | Blocks], bias: NDArray[np.float32] | None, variant: str, arena: Arena) -> Matrix:
    """Outputs of all parts, one after the other. Parts of different widths all get the widest."""
    lib = library.library(variant)
    shapes = [part.codes.shape if isinstance(part, Codes) else part.shape for part in parts]
    inputs, bits, rows = shapes[0][1], max(part.bits for part in parts), sum(shape[0] for shape in shapes)
    outputs = -(-rows // LANES) * LANES
    tiles = arena.take(lib.headrace_packed_bytes(inputs, outputs, bits))
    first = 0
    for part, shape in zip(parts, shapes, strict=True):
        place = (inputs, shape[0], first, bits, tiles.ctypes.data)
        if isinstance(part, Codes):
            arrays = [np.ascontiguousarray(array) for array in (part.codes, part.scales, part.least)]
            lib.headrace_pack(*(array.ctypes.data for array in arrays), *place)
        elif not lib.headrace_pack_blocks(part.raw.ctypes.data, part.kind, address(part.order), *place):
            raise RuntimeError(f"engine/native does not read {part.kind.name}")
        first += shape[0]
    if bias is not None:
        bias = np.concatenate((bias, np.zeros(outputs - rows, np.float32)))
    return Matrix(tiles, bias, inputs, outputs, bits)


def fits(spec: ModelSpec, block_size: int) -> bool:
    """Whether forward.cpp can run it."""
    in_groups = (spec.hidden, spec.ffn, spec.q_size, spec.head_dim)
    return all(size % GROUP == 0 for size in in_groups) and block_size % LANES == 0 and spec.rotary_dim == spec.head_dim


def load(checkpoint: GgufCheckpoint, variant: str, report: Report) -> NativeWeights:
    """Raises ModelRefused for a tensor that is missing, unknown, wrongly shaped or cannot be read."""
    checkpoint.check()
    spec = checkpoint.spec
    arena = Arena()
    done, total = 0, spec.num_layers + 1

    def matrix(names: Iterable[str], biased: bool = False) -> Matrix:
        names = list(names)
        bias = np.concatenate([checkpoint.vector(f"{name}.bias") for name in names]) if biased else None
        return pack([checkpoint.matrix(f"{name}.weight") for name in names], bias, variant, arena)

    embed = matrix(["token_embd"])
    head = embed if spec.tied else matrix(["output"])
    weights = NativeWeights(embed, head, checkpoint.vector("output_norm.weight"))
    for index in range(spec.num_layers):
        report(done := done + 1, total)
        block = f"blk.{index}."
        weights.layers.append(
            NativeLayer(
                attn_norm=checkpoint.vector(block + "attn_norm.weight"),
                ffn_norm=checkpoint.vector(block + "ffn_norm.weight"),
                q_norm=checkpoint.vector(block + "attn_q_norm.weight") if spec.qk_norm else None,
                k_norm=checkpoint.vector(block + "attn_k_norm.weight") if spec.qk_norm else None,
                qkv=matrix((block + name for name in ("attn_q", "attn_k", "attn_v")), spec.qkv_bias),
                o=matrix([block + "attn_output"], spec.o_bias),
                gate_up=matrix(block + name for name in ("ffn_gate", "ffn_up")),
                down=matrix([block + "ffn_down"]),
            )
        )
    report(total, total)
    return weights
