"""From a configuration to a running engine: the one place that knows every part."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from engine import kvcache
from engine.attention.base import AttentionBackend
from engine.errors import ModelRefused, OutOfMemory
from engine.host import Host, available_bytes, choose_host
from engine.kvcache import KVCache
from engine.loaders.checkpoint import Checkpoint, load, open_checkpoint
from engine.models.decoder import Decoder
from engine.models.weights import Weights
from engine.rows import RowTable
from engine.runner import Runner
from scheduler.blocks import BlockPool
from scheduler.plan import Admit, StepPlan, Work
from scheduler.protocol import EngineConfig, Ready
from scheduler.scheduler import Scheduler
from scheduler.types import Limits, SamplingParams

Report = Callable[[str, int, int], None]  # phase, done, total
CPU_STEP_TOKENS = 256
GPU_STEP_TOKENS = 8192


class Phases:
    """Start-up phases: each told to `report` when it begins, timed when it ends."""

    def __init__(self, report: Report, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: list[tuple[str, float]] = []
        self._report = report
        self._clock = clock

    @contextmanager
    def phase(self, name: str) -> Iterator[Callable[[int, int], None]]:
        """Yields the phase's own report(done, total)."""
        started = self._clock()
        self._report(name, 0, 0)
        yield lambda done, total: self._report(name, done, total)
        self.seconds.append((name, round(self._clock() - started, 3)))


def build(config: EngineConfig, phases: Phases) -> tuple[Scheduler, Runner, Ready]:
    """Raises ModelRefused or OutOfMemory, each with one line for people."""
    host = choose_host(config.device, config.dtype, config.threads)
    _set_threads(host)
    attention = choose_attention(config.attention, host)
    with phases.phase("reading the checkpoint's header"):
        checkpoint = open_checkpoint(Path(config.model), config.format, config.seed)
    with phases.phase("loading weights") as report:
        weights = load_weights(checkpoint, host, report)
    with phases.phase("allocating the KV cache"):
        limits, cache = _allocate_cache(config, checkpoint, host)
    decoder = Decoder(checkpoint.spec, weights, cache, attention, limits.max_model_len, checkpoint.rope_factors)
    max_blocks = -(-limits.max_model_len // limits.block_size)
    rows = RowTable(limits.max_seqs, max_blocks, checkpoint.spec.vocab_size, host.device)
    runner = Runner(decoder, rows, limits.block_size, host.device)
    with phases.phase("warming up"):
        warm_up(runner, limits.block_size)
    scheduler = Scheduler(limits, BlockPool(cache.num_blocks, limits.block_size), time.monotonic)
    return scheduler, runner, _ready(checkpoint, host, weights, limits, cache, attention.name, phases)


def _set_threads(host: Host) -> None:
    """For torch, and on CPUs for the kernels that numba compiles."""
    torch.set_num_threads(host.threads)
    if host.device.type == "cpu":
        import numba

        numba.set_num_threads(min(host.threads, os.cpu_count() or 1))  # it starts no more than there are cores


def load_weights(checkpoint: Checkpoint, host: Host, report: Callable[[int, int], None]) -> Weights:
    return load(checkpoint, host.dtype, host.device, report)


def choose_attention(name: str, host: Host) -> AttentionBackend[Any]:
    """auto: the compiled kernel on CPUs, for the types it reads; plain torch elsewhere."""
    compiled = host.device.type == "cpu" and host.dtype in (torch.float32, torch.bfloat16)
    if name == "numba" and not compiled:
        dtype = str(host.dtype).removeprefix("torch.")
        raise ModelRefused(
            f"--attention numba is for float32 and bfloat16 on CPUs, not for {dtype} on {host.device.type}; "
            "use --attention sdpa"
        )
    if name == "numba" or (name == "auto" and compiled):
        from engine.attention.paged_numba import NumbaAttention

        return NumbaAttention()
    if name == "reference":
        from engine.attention.reference import ReferenceAttention

        return ReferenceAttention()
    from engine.attention.sdpa import SdpaAttention

    return SdpaAttention()


def _allocate_cache(config: EngineConfig, checkpoint: Checkpoint, host: Host) -> tuple[Limits, KVCache]:
    spec = checkpoint.spec
    wanted = config.max_model_len or spec.context_length
    if wanted > spec.context_length:
        raise ModelRefused(f"--max-model-len {wanted} is more than the model's context of {spec.context_length} tokens")
    budget = config.kv_cache_bytes or _cache_budget(config, host)
    num_blocks = kvcache.num_blocks_for(spec, config.block_size, host.dtype, budget, wanted)
    usable_tokens = (num_blocks - kvcache.RESERVED_BLOCKS) * config.block_size
    if config.max_model_len > usable_tokens:
        per_token = kvcache.block_bytes(spec, config.block_size, host.dtype) // config.block_size
        raise OutOfMemory(
            f"a context of {config.max_model_len} tokens needs {config.max_model_len * per_token} bytes of KV cache, "
            f"{budget} are given; raise --kv-cache-memory or lower --max-model-len"
        )
    limits = Limits(
        max_seqs=config.max_seqs,
        max_step_tokens=config.max_step_tokens or (CPU_STEP_TOKENS if host.device.type == "cpu" else GPU_STEP_TOKENS),
        max_model_len=min(wanted, usable_tokens),
        block_size=config.block_size,
        max_waiting=config.max_waiting,
        max_waiting_tokens=config.max_waiting_tokens,
        prefix_caching=config.prefix_caching,
    )
    return limits, kvcache.allocate(spec, num_blocks, config.block_size, host.dtype, host.device)


def _cache_budget(config: EngineConfig, host: Host) -> int:
    if host.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(host.device)
        return max(0, int(free - (1 - config.gpu_memory_fraction) * total))
    return min(kvcache.CPU_MAX_BYTES, int(available_bytes() * kvcache.CPU_SHARE))


def warm_up(runner: Runner, block_size: int) -> None:
    """A prompt of a few tokens and one decode through the padding block: compiles kernels, fills library caches."""
    params = SamplingParams(max_tokens=2)
    count = min(4, block_size - 1)
    admit = Admit(0, 0, params, [0] * count, count, [1], 0)
    runner.execute(StepPlan(0, [], [admit], [Work(0, 0, count, [], True)]))
    runner.execute(StepPlan(0, [], [], [Work(0, count, 1, [], True)]))
    runner.release(0)


def _ready(
    checkpoint: Checkpoint,
    host: Host,
    weights: Weights,
    limits: Limits,
    cache: KVCache,
    attention: str,
    phases: Phases,
) -> Ready:
    return Ready(
        device=host.description,
        dtype=str(host.dtype).removeprefix("torch."),
        attention=attention,
        architecture=checkpoint.spec.architecture,
        vocab_size=checkpoint.spec.vocab_size,
        max_model_len=limits.max_model_len,
        block_size=limits.block_size,
        num_blocks=cache.num_blocks,
        max_seqs=limits.max_seqs,
        max_step_tokens=limits.max_step_tokens,
        num_parameters=weights.num_parameters,
        weights_bytes=weights.num_bytes,
        kv_cache_bytes=cache.num_bytes,
        phases_s=phases.seconds,
        hidden_size=checkpoint.spec.hidden,
    )
