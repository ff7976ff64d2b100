"""Quantised weights as they are, or widened and multiplied by torch: where the processor leaves it open, both are timed
at start, on a few layers of the model's shapes, and the faster one runs. Knows neither files nor caches; the weights
that it times are constants."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine import kvcache
from engine.batch import BatchView
from engine.host import Host, cpu_flags
from engine.kvcache import RESERVED_BLOCKS, KVCache, LayerKV
from engine.loaders.blocks import GROUP
from engine.models import products
from engine.models.decoder import Decoder
from engine.models.spec import ModelSpec
from engine.models.weights import allocate, num_weights
from engine.native import library
from engine.native.decoder import NativeDecoder
from engine.native.weights import LANES, Arena, Matrix, NativeLayer, NativeWeights
from engine.pages import zero_pages

# How often a step of so many rows is in the typical mix: 32 requests at once and one alone, each of 128 tokens in and
# out; prompts are read in chunks of 256.
MIX = {1: 128, 32: 128, 256: 33 * 128 // 256}
MATRIX_FLAGS = {"amx_bf16"}
MARGIN = 1.1  # widened weights take several times the memory, and near ties should fall the same way at each start
LEAST_SHARE = 0.9
WEIGHTS_A_THREAD = 2 << 20  # of what is timed
MOST_WEIGHTS = 64 << 20
BLOCK_SIZE = 16
CONSTANT_BYTE = 0x11  # of tiles: codes of 1, scales of 0.0006
FLUSHED_BYTES = 32 << 20
FEWEST, MOST = 3, 5  # repetitions; the first is not counted
LIMIT_S = 0.1  # of them all, beyond the fewest

Times = Mapping[int, float]  # seconds by rows
Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Measured:
    """Steps of the same layers, in both ways, the shortest of each."""

    native: Times
    plain: Times
    share: float  # of the time of its threads that the native steps had a processor

    @property
    def is_disturbed(self) -> bool:
        return self.share < LEAST_SHARE

    def told(self, dtype: str) -> str:
        """The choice and why, in one line. dtype: what weights are widened to."""
        chosen = f"are widened to {dtype}" if plain_wins(self) else "run as they are"
        rows = " / ".join(str(rows) for rows in MIX)
        others = ", while other programs took the processors" if self.is_disturbed else ""
        return (
            f"quantised weights {chosen}: layers like theirs take {_ms(self.native)} ms for {rows} tokens, widened to "
            f"{dtype} {_ms(self.plain)}{others}"
        )


def is_open() -> bool:
    """Only matrix units multiply bfloat16 as fast as native code's instructions multiply bytes. Without them, widened
    weights took 1.3 to 3.4 times as long (docs/log.md), and to time both at each start would take longer than all else
    that is done with weights."""
    return bool(cpu_flags() & MATRIX_FLAGS)


def plain_wins(measured: Measured) -> bool:
    """Weights are widened if otherwise 32 requests at once and one alone, each of 128 tokens in and out, would take
    over a tenth longer.

    Not by times that other programs have disturbed: a moment at start would decide for as long as the engine runs.
    """
    both = (measured.native, measured.plain)
    native, plain = (sum(times[rows] * count for rows, count in MIX.items()) for times in both)
    return native > MARGIN * plain and not measured.is_disturbed


def _ms(times: Times) -> str:
    return " / ".join(f"{times[rows] * 1e3:.2f}" for rows in MIX)


def sample_of(spec: ModelSpec, most_weights: int) -> ModelSpec:
    """As many of its layers as have so many weights; of larger layers one that is narrower in all directions."""
    bare = replace(
        spec,
        vocab_size=LANES,
        tied=True,
        qkv_bias=False,
        o_bias=False,
        qk_norm=False,
        rope_scaling=None,
        windows=(),
        nope_layers=frozenset(),
    )
    one = num_weights(replace(bare, num_layers=1))
    if one <= most_weights:
        return replace(bare, num_layers=min(spec.num_layers, most_weights // one))
    share = math.sqrt(most_weights / one)
    kv_heads = max(1, int(spec.num_kv_heads * share))
    return replace(
        bare,
        num_layers=1,
        hidden=max(1, int(spec.hidden * share) // GROUP) * GROUP,
        ffn=max(1, int(spec.ffn * share) // GROUP) * GROUP,
        num_heads=kv_heads * (spec.num_heads // spec.num_kv_heads),
        num_kv_heads=kv_heads,
    )


def measure(
    spec: ModelSpec,
    bits: int,
    variant: str,
    host: Host,
    clock: Clock = time.perf_counter,
    cpu_clock: Clock = time.process_time,
) -> Measured:
    """Whole layers, not products alone: of small models, torch's operations between products are half of a step.
    Attention is left out, but for one key natively. bits: of most weights. torch has its number of threads already."""
    sample = sample_of(spec, min(WEIGHTS_A_THREAD * host.threads, MOST_WEIGHTS))
    native, plain = _native(sample, bits, variant, host.threads), _plain(sample, host)
    others = torch.from_numpy(zero_pages(FLUSHED_BYTES)).view(torch.int64).fill_(1)
    found: dict[int, tuple[list[_Step], list[_Step]]] = {rows: ([], []) for rows in MIX}
    ends_at = clock() + LIMIT_S
    for repetition in range(MOST):
        if repetition >= FEWEST and clock() > ends_at:
            break
        for rows, both in found.items():
            view = _view(rows)
            for forward, steps in zip((native, plain), both, strict=True):
                others.sum()  # as other layers' weights do in a step: these come from memory
                cpu_started, started = cpu_clock(), clock()
                forward(view)
                steps.append(_Step(clock() - started, cpu_clock() - cpu_started))
    longest = found[max(MIX)][0][1:]  # its threads work or spin from the first to the last moment
    return Measured(
        {rows: min(steps[1:]).seconds for rows, (steps, _) in found.items()},
        {rows: min(steps[1:]).seconds for rows, (_, steps) in found.items()},
        sum(step.cpu_seconds for step in longest) / sum(step.seconds for step in longest) / host.threads,
    )


class _Step(NamedTuple):
    seconds: float
    cpu_seconds: float


class _Skipped:
    """Attention that does nothing."""

    name = "none"

    def prepare(self, view: BatchView, block_size: int) -> None:
        return None

    def run(
        self, q: Tensor, k: Tensor, v: Tensor, cache: LayerKV, meta: None, scale: float, window: int | None
    ) -> Tensor:
        return q


def _native(spec: ModelSpec, bits: int, variant: str, threads: int) -> Callable[[BatchView], Tensor]:
    lib, arena = library.library(variant), Arena()

    def matrix(outputs: int, inputs: int) -> Matrix:
        tiles = arena.take(lib.headrace_packed_bytes(inputs, outputs, bits))
        torch.from_numpy(tiles).fill_(CONSTANT_BYTE)
        return Matrix(tiles, None, inputs, outputs, bits)

    norm: NDArray[np.float32] = np.ones(spec.hidden, np.float32)
    embed = matrix(spec.vocab_size, spec.hidden)
    weights = NativeWeights(embed, embed, norm)
    for _ in range(spec.num_layers):
        qkv, o = matrix(spec.q_size + 2 * spec.kv_size, spec.hidden), matrix(spec.hidden, spec.q_size)
        gate_up, down = matrix(2 * spec.ffn, spec.hidden), matrix(spec.hidden, spec.ffn)
        weights.layers.append(NativeLayer(norm, norm, None, None, qkv, o, gate_up, down))
    return NativeDecoder(spec, weights, _cache(spec, torch.bfloat16), BLOCK_SIZE, max(MIX), threads, variant).forward


def _plain(spec: ModelSpec, host: Host) -> Callable[[BatchView], Tensor]:
    weights = allocate(spec, host.dtype, host.device)
    for tensor in weights.tensors():
        tensor.fill_(2**-10)
    if products.can_pack(host.device, host.dtype):
        products.pack(weights)
    return Decoder(spec, weights, _cache(spec, host.dtype), _Skipped(), BLOCK_SIZE).forward


def _cache(spec: ModelSpec, dtype: torch.dtype) -> KVCache:
    """A block for each row."""
    return kvcache.allocate(spec, RESERVED_BLOCKS + max(MIX), BLOCK_SIZE, dtype, torch.device("cpu"))


def _view(rows: int) -> BatchView:
    """The first token of so many sequences."""
    blocks = np.arange(RESERVED_BLOCKS, RESERVED_BLOCKS + rows, dtype=np.int32)
    return BatchView(
        ids=torch.zeros(rows, dtype=torch.int64),
        positions=torch.zeros(rows, dtype=torch.int64),
        slots=torch.from_numpy(blocks.astype(np.int64) * BLOCK_SIZE),
        sample_rows=torch.zeros(0, dtype=torch.int64),
        q_starts=np.arange(rows + 1, dtype=np.int32),
        kv_lens=np.ones(rows, np.int32),
        block_tables=blocks[:, None],
    )
