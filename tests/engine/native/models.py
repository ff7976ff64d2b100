"""Small random models with quantised weights, for forward.cpp and, in float32, for the plain forward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine import kvcache
from engine.attention.sdpa import SdpaAttention
from engine.batch import BatchView
from engine.kvcache import KVCache
from engine.loaders.blocks import GROUP, Codes
from engine.models.decoder import Decoder
from engine.models.spec import ModelSpec
from engine.models.weights import LayerWeights, Weights
from engine.native.decoder import NativeDecoder
from engine.native.weights import Arena, NativeLayer, NativeWeights, pack

CPU = torch.device("cpu")
BLOCKS, BLOCK_SIZE, MAX_TOKENS, MAX_LEN = 64, 16, 96, 256


def spec_of(**changes: Any) -> ModelSpec:
    sizes: dict[str, Any] = {
        "architecture": "llama",
        "num_layers": 3,
        "hidden": 96,
        "num_heads": 6,
        "num_kv_heads": 2,
        "head_dim": 32,
        "rotary_dim": changes.get("head_dim", 32),
        "ffn": 160,
        "vocab_size": 203,
        "norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "context_length": MAX_LEN,
        "tied": True,
    }
    return ModelSpec(**(sizes | changes))


def random_codes(rng: np.random.Generator, rows: int, inputs: int, bits: int) -> Codes:
    """Weights around zero, of about one over the root of the inputs."""
    groups = (rows, inputs // GROUP)
    codes = rng.integers(0, 1 << bits, (rows, inputs), np.uint8)
    scales = (rng.uniform(0.5, 1.5, groups) * 4 / (1 << bits) / inputs**0.5).astype(np.float16)
    least = (-scales.astype(np.float32) * (1 << bits) * rng.uniform(0.3, 0.7, groups)).astype(np.float16)
    return Codes(codes, scales, least, bits)


@dataclass(frozen=True)
class Pair:
    """The same weights twice."""

    spec: ModelSpec
    native: NativeWeights
    plain: Weights

    def decoder(self, variant: str, threads: int = 2, cache: KVCache | None = None) -> NativeDecoder:
        cache = cache or kvcache.allocate(self.spec, BLOCKS, BLOCK_SIZE, torch.bfloat16, CPU)
        return NativeDecoder(self.spec, self.native, cache, MAX_LEN, MAX_TOKENS, threads, variant)

    def reference(self) -> Decoder:
        cache = kvcache.allocate(self.spec, BLOCKS, BLOCK_SIZE, torch.float32, CPU)
        return Decoder(self.spec, self.plain, cache, SdpaAttention(), MAX_LEN)


def random_pair(spec: ModelSpec, variant: str, seed: int = 0) -> Pair:
    rng, arena = np.random.default_rng(seed), Arena()

    def vector(size: int, mean: float) -> NDArray[np.float32]:
        return rng.normal(mean, 0.3, size).astype(np.float32)

    def optional(wanted: bool, size: int, mean: float) -> NDArray[np.float32] | None:
        return vector(size, mean) if wanted else None

    def tensor(array: NDArray[np.float32] | None) -> Tensor | None:
        return None if array is None else torch.from_numpy(array)

    def whole(parts: list[Codes]) -> Tensor:
        return torch.from_numpy(np.concatenate([part.values() for part in parts]))

    def codes(rows: int, inputs: int, bits: int = 4) -> Codes:
        return random_codes(rng, rows, inputs, bits)

    embed = codes(spec.vocab_size, spec.hidden, 8)
    head = embed if spec.tied else codes(spec.vocab_size, spec.hidden, 4)
    packed = pack([embed], None, variant, arena)
    native = NativeWeights(
        packed, packed if spec.tied else pack([head], None, variant, arena), vector(spec.hidden, 1.0)
    )
    table = whole([embed])
    plain = Weights(table, [], torch.from_numpy(native.final_norm), table if spec.tied else whole([head]))
    for _ in range(spec.num_layers):
        qkv = [codes(spec.q_size, spec.hidden), codes(spec.kv_size, spec.hidden), codes(spec.kv_size, spec.hidden, 8)]
        qkv_bias = optional(spec.qkv_bias, spec.q_size + 2 * spec.kv_size, 0.0)
        o, o_bias = [codes(spec.hidden, spec.q_size)], optional(spec.o_bias, spec.hidden, 0.0)
        gate_up, down = [codes(spec.ffn, spec.hidden), codes(spec.ffn, spec.hidden)], [codes(spec.hidden, spec.ffn)]
        norms = vector(spec.hidden, 1.0), vector(spec.hidden, 1.0)
        of_heads = optional(spec.qk_norm, spec.head_dim, 1.0), optional(spec.qk_norm, spec.head_dim, 1.0)
        native.layers.append(
            NativeLayer(
                *norms,
                *of_heads,
                pack(qkv, qkv_bias, variant, arena),
                pack(o, o_bias, variant, arena),
                pack(gate_up, None, variant, arena),
                pack(down, None, variant, arena),
            )
        )
        plain.layers.append(
            LayerWeights(
                torch.from_numpy(norms[0]),
                whole(qkv),
                tensor(qkv_bias),
                tensor(of_heads[0]),
                tensor(of_heads[1]),
                whole(o),
                tensor(o_bias),
                torch.from_numpy(norms[1]),
                whole(gate_up),
                None,
                whole(down),
                None,
            )
        )
    return Pair(spec, native, plain)


@dataclass(frozen=True)
class Run:
    """Tokens of one sequence in a step."""

    ids: list[int]
    start: int
    table: list[int]


def view_of(runs: list[Run], block_size: int = BLOCK_SIZE) -> BatchView:
    widest = max(len(run.table) for run in runs)
    tables = np.zeros((len(runs), widest), np.int32)
    ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    for row, run in zip(tables, runs, strict=True):
        row[: len(run.table)] = run.table
        places = range(run.start, run.start + len(run.ids))
        ids += run.ids
        positions += places
        slots += [run.table[p // block_size] * block_size + p % block_size for p in places]
    counts = [len(run.ids) for run in runs]
    return BatchView(
        ids=torch.tensor(ids),
        positions=torch.tensor(positions),
        slots=torch.tensor(slots),
        sample_rows=torch.zeros(0, dtype=torch.int64),
        q_starts=np.cumsum([0, *counts], dtype=np.int32),
        kv_lens=np.array([run.start + len(run.ids) for run in runs], np.int32),
        block_tables=tables,
    )


def rounded(x: Tensor) -> Tensor:
    """Activations as forward.cpp has them where they meet weights."""
    groups = x.unflatten(-1, (-1, GROUP))
    scales = groups.abs().amax(-1, keepdim=True) / 127
    return (torch.round(groups / torch.where(scales > 0, scales, 1.0)) * scales).flatten(-2)
