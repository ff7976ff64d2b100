"""A runner on a GPU, and how much memory it needs beside the weights and the cache: measured, by running its largest
steps with a cache of no size."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine import kvcache
from engine.cuda import flash
from engine.cuda.attention import workspace
from engine.cuda.decoder import CudaDecoder
from engine.cuda.runner import CudaRunner
from engine.cuda.step import max_tokens
from engine.cuda.sums import Sums, sums_for
from engine.cuda.tables import DeviceTables
from engine.cuda.tiles import SPLIT
from engine.kvcache import KVCache
from engine.models.spec import ModelSpec
from engine.models.weights import Weights
from engine.parallel.peers import Peers
from scheduler.types import Limits

LEAST_SPLIT = SPLIT // 2
MOST_TILES = 4096  # of decode attention, beside one for each sequence: a million keys
GRAPH_BYTES = 6 << 20  # allowed for what the driver keeps of a captured step; not measured


@dataclass(frozen=True, slots=True)
class Model:
    spec: ModelSpec
    weights: Weights
    rope_factors: Tensor | None
    sums: Sums | None = None  # None: there are no other ranks


def model_of(spec: ModelSpec, weights: Weights, rope_factors: Tensor | None, peers: Peers) -> Model:
    return Model(spec, weights, rope_factors, sums_for(peers, spec, weights.embed.dtype, weights.embed.device))


def make_runner(model: Model, cache: KVCache, limits: Limits) -> CudaRunner:
    spec, device = model.spec, model.weights.embed.device
    max_tiles = limits.max_seqs + min(cache.num_blocks * cache.block_size // LEAST_SPLIT + 1, MOST_TILES)
    tables = DeviceTables(limits.max_seqs, -(-limits.max_model_len // limits.block_size), device)
    # A single token anywhere in a step is a tile of decode.
    space = workspace(max_tiles, max_tokens(limits), spec.num_heads, spec.num_kv_heads, spec.head_dim, device)
    flashed = flash.load(spec, limits, cache.layers[0])
    decoder = CudaDecoder(spec, model.weights, cache, tables, space, limits, model.rope_factors, flashed, model.sums)
    return CudaRunner(decoder, tables, limits, max_tiles)


def working_bytes(model: Model, limits: Limits, dtype: torch.dtype) -> int:
    """Of tables, activations and graphs: measured, but for an allowance of GRAPH_BYTES for each graph. The steps that
    measure it also compile the kernels."""
    device = model.weights.embed.device
    before = _emptied(device)
    cache = kvcache.allocate(model.spec, kvcache.RESERVED_BLOCKS, limits.block_size, dtype, device)
    runner = make_runner(model, cache, limits)
    runner.run_padding(runner.max_tokens)
    eager = torch.cuda.max_memory_allocated(device) - before
    held = _emptied(device)
    runner.run_padding(runner.largest_captured)
    captured = torch.cuda.max_memory_allocated(device) - held  # graphs have a pool of their own
    del runner, cache
    _emptied(device)
    tiles = MOST_TILES * (model.spec.q_size + 2 * model.spec.num_heads) * 4
    return eager + captured + len(CudaRunner.sizes(limits)) * GRAPH_BYTES + tiles


def _emptied(device: torch.device) -> int:
    """Bytes in use, and nothing kept beyond them."""
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)
