"""From a configuration to a running engine: the one place that knows every part."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from engine import kvcache
from engine.attention.base import AttentionBackend
from engine.errors import ModelRefused, OutOfMemory
from engine.host import Host, available_bytes, choose_host, seated
from engine.kvcache import KVCache
from engine.loaders.checkpoint import Checkpoint, load, open_checkpoint
from engine.loaders.gguf import GgufCheckpoint
from engine.loaders.sharded import ShardedCheckpoint
from engine.models import products
from engine.models.family import FamilyWeights, family_of, num_parameters
from engine.models.spec import Shape
from engine.native import choice, library
from engine.native import weights as native_weights
from engine.native.decoder import NativeDecoder
from engine.parallel.messages import SOLE, Seat
from engine.parallel.peers import ALONE, Peers
from engine.rows import RowTable
from engine.runner import Runner
from scheduler.blocks import BlockPool
from scheduler.plan import Admit, StepPlan, Work
from scheduler.protocol import EngineConfig, Ready
from scheduler.scheduler import Scheduler
from scheduler.types import Limits, SamplingParams

if TYPE_CHECKING:
    from engine.parallel.leader import Shared

log = logging.getLogger("headrace.engine")
Report = Callable[[str, int, int], None]  # phase, done, total
CPU_SEQS, GPU_SEQS = 64, 256
CPU_STEP_TOKENS = 256
CPU_WIDENED_SHARE = 0.5  # of the memory that is available, for quantised weights that need not be widened
GPU_STEP_TOKENS = 4096  # a tenth of a second for 8B parameters on an H100: docs/log.md
MIXED_PROMPT_TOKENS = 512  # with 64 decodes, a step of 16 ms there
GIB = 1 << 30
REMEDIES = (
    "raise --gpu-memory-fraction, lower --max-step-tokens or --max-seqs, choose a smaller model or a narrower --dtype, "
    "or free the GPU of other programs"
)


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


def build(config: EngineConfig, phases: Phases, seat: Seat = SOLE) -> tuple[Scheduler, Shared, Ready]:
    """Raises ModelRefused or OutOfMemory, each with one line for people. seat: which rank of a tensor-parallel group
    this is; all of them build at the same time."""
    host = seated(choose_host(config.device, config.dtype, config.threads, config.sharers), seat)
    torch.set_num_threads(host.threads)
    if host.device.index is not None:
        torch.cuda.set_device(host.device)  # what Triton and NCCL go by
    with phases.phase("reading the checkpoint's header"):
        checkpoint = open_checkpoint(Path(config.model), config.format, config.seed)
        whole = num_parameters(checkpoint.spec)
        if seat.num_ranks > 1:
            checkpoint = ShardedCheckpoint(checkpoint, seat.rank, seat.num_ranks)
    try:
        parts = _build(config, host, checkpoint, phases, join(seat, host, phases))
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(f"{host.device} has too little memory: {str(error).split('. ')[0]}; {REMEDIES}") from None
    scheduler = Scheduler(parts.limits, BlockPool(parts.cache.num_blocks, parts.limits.block_size), time.monotonic)
    return scheduler, parts.runner, _ready(checkpoint, host, parts, phases, whole)


def join(seat: Seat, host: Host, phases: Phases) -> Peers:
    if seat.num_ranks == 1:
        return ALONE
    from engine.parallel.group import Group  # torch.distributed, which nobody else needs

    with phases.phase("finding the other ranks"):
        return Group(seat, host.device)


def _build(config: EngineConfig, host: Host, checkpoint: Checkpoint, phases: Phases, peers: Peers) -> Parts:
    _check_weights_fit(config, checkpoint.spec, host)
    variant = native_variant(config, host, checkpoint)
    if (
        variant is not None
        and isinstance(checkpoint, GgufCheckpoint)
        and native_wins(host, checkpoint, variant, phases)
    ):
        return _build_native(config, host, checkpoint, variant, phases)
    attention = _attention(config.attention, host, checkpoint.spec)
    with phases.phase("loading weights") as report:
        weights = load_weights(checkpoint, host, report)
    if attention is None:
        return _build_cuda(config, host, checkpoint, weights, phases, peers)
    return _build_portable(config, host, attention, checkpoint, weights, phases, peers)


@dataclass(frozen=True, slots=True)
class Parts:
    limits: Limits
    cache: KVCache
    runner: Shared
    attention: str  # whose kernels
    dtype: str  # of the weights
    weights_bytes: int
    working_bytes: int = 0  # of what else the device holds, where that was measured


def _build_cuda(
    config: EngineConfig, host: Host, checkpoint: Checkpoint, weights: Any, phases: Phases, peers: Peers
) -> Parts:
    from engine.cuda import build as cuda  # Triton is there on machines with a GPU only

    model = cuda.model_of(checkpoint.spec, weights, checkpoint.rope_factors, peers)
    with phases.phase("compiling kernels, measuring steps"):
        working = cuda.working_bytes(model, _limits(config, checkpoint.spec, host), host.dtype)
    with phases.phase("allocating the KV cache"):
        limits, cache = _allocate_cache(config, checkpoint, host, working, peers)
    runner = cuda.make_runner(model, cache, limits)
    with phases.phase("capturing graphs") as report:
        runner.capture(report)
    return Parts(limits, cache, runner, runner.attention, _name(host.dtype), weights.num_bytes, working)


def _build_portable(
    config: EngineConfig,
    host: Host,
    attention: AttentionBackend[Any],
    checkpoint: Checkpoint,
    weights: FamilyWeights,
    phases: Phases,
    peers: Peers,
) -> Parts:
    if products.can_pack(host.device, host.dtype):
        with phases.phase("packing weights"):
            family_of(checkpoint.spec).pack(weights)
    with phases.phase("allocating the KV cache"):
        limits, cache = _allocate_cache(config, checkpoint, host, 0, peers)
    family = family_of(checkpoint.spec)
    decoder = family.decoder(checkpoint, weights, cache, attention, limits.max_model_len, peers)
    max_blocks = -(-limits.max_model_len // limits.block_size)
    rows = RowTable(limits.max_seqs, max_blocks, checkpoint.spec.vocab_size, host.device)
    runner = Runner(decoder, rows, limits.block_size, host.device, prev_ids=family.reads_prev_ids(checkpoint.spec))
    with phases.phase("warming up"):
        warm_up(runner, limits)
    return Parts(limits, cache, runner, attention.name, _name(host.dtype), weights.num_bytes)


def native_variant(config: EngineConfig, host: Host, checkpoint: Checkpoint) -> str | None:
    """The compiled forward pass that takes quantised weights as they are. None: the weights are not, it is not compiled
    for this processor, or the configuration asks for something else."""
    if config.tp > 1 or host.device.type != "cpu" or config.dtype != "auto" or config.attention != "auto":
        return None
    if not isinstance(checkpoint, GgufCheckpoint) or not checkpoint.is_quantised:
        return None
    if not (family_of(checkpoint.spec).has_kernels and native_weights.fits(checkpoint.spec, config.block_size)):
        return None
    variant = library.best()
    if variant is None and library.could_run():
        log.warning(
            "quantised weights are widened to %s and run three to nine times slower: engine/native is not compiled, "
            "for lack of a C++ compiler when headrace was installed",
            _name(host.dtype),
        )
    return variant


def native_wins(host: Host, checkpoint: GgufCheckpoint, variant: str, phases: Phases) -> bool:
    """By a short measurement where that is open; the log tells of it. Raises ModelRefused for tensors that are missing
    or unknown."""
    checkpoint.check()
    if not choice.is_open():
        log.info("quantised weights run as they are: this processor has no matrix units to multiply widened ones")
        return True
    dtype = _name(host.dtype)
    needed, free = num_parameters(checkpoint.spec) * host.dtype.itemsize, available_bytes()
    if needed > CPU_WIDENED_SHARE * free:
        log.info(
            "quantised weights run as they are: widened to %s they would take %.1f GiB of %.1f",
            *(dtype, needed / GIB, free / GIB),
        )
        return True
    with phases.phase(f"timing quantised and {dtype} layers"):
        bits = checkpoint.matrix("blk.0.attn_k.weight").bits  # what most have: files mix formats elsewhere
        measured = choice.measure(checkpoint.spec, bits, variant, host)
    log.info("%s", measured.told(dtype))
    return not choice.plain_wins(measured)


def _build_native(config: EngineConfig, host: Host, checkpoint: GgufCheckpoint, variant: str, phases: Phases) -> Parts:
    torch.set_num_threads(1)  # it has threads of its own, and those of torch would wait beside them, spinning
    host = replace(host, dtype=torch.bfloat16)  # of the cache
    spec = checkpoint.spec
    with phases.phase("loading weights") as report:
        weights = native_weights.load(checkpoint, variant, report)
    with phases.phase("allocating the KV cache"):
        limits, cache = _allocate_cache(config, checkpoint, host, 0, ALONE)
    max_tokens = max(limits.max_step_tokens, limits.max_seqs, limits.block_size)  # the last for the warm-up
    shapes = (limits.max_model_len, max_tokens, host.threads, variant)
    decoder = NativeDecoder(spec, weights, cache, *shapes, checkpoint.rope_factors)
    max_blocks = -(-limits.max_model_len // limits.block_size)
    rows = RowTable(limits.max_seqs, max_blocks, spec.vocab_size, host.device)
    runner = Runner(decoder, rows, limits.block_size, host.device)
    with phases.phase("warming up"):
        warm_up(runner, limits)
    return Parts(limits, cache, runner, f"native ({variant})", weights.dtype, weights.num_bytes)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def load_weights(checkpoint: Checkpoint, host: Host, report: Callable[[int, int], None]) -> FamilyWeights:
    return load(checkpoint, host.dtype, host.device, report)


def _attention(name: str, host: Host, spec: Shape) -> AttentionBackend[Any] | None:
    if host.device.type == "cpu":
        import numba  # takes half a second: not where it is not needed

        most: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
        numba.set_num_threads(min(host.threads, most))
    attention = choose_attention(name, host)
    if attention is None and not family_of(spec).has_kernels:
        return _without_kernels(name, spec)
    return attention


def choose_attention(name: str, host: Host) -> AttentionBackend[Any] | None:
    """None: the kernels of engine/cuda. auto: those, where they run; on CPUs the compiled kernel, for the types that it
    reads; plain torch elsewhere."""
    device = host.device.type
    compiled = device == "cpu" and host.dtype in (torch.float32, torch.bfloat16)
    dtype = _name(host.dtype)
    if name == "numba" and not compiled:
        raise ModelRefused(
            f"--attention numba is for float32 and bfloat16 on CPUs, not for {dtype} on {device}; use --attention sdpa"
        )
    if name == "triton" and not host.runs_triton:
        raise ModelRefused(
            f"--attention triton does not run on {host.description}: it needs the package triton and an Nvidia GPU of "
            "compute capability 8.0 or more; use --attention sdpa"
        )
    if name == "triton" or (name == "auto" and host.runs_triton):
        return None
    if name == "numba" or (name == "auto" and compiled):
        from engine.attention.paged_numba import NumbaAttention

        return NumbaAttention()
    if name == "reference":
        from engine.attention.reference import ReferenceAttention

        return ReferenceAttention()
    from engine.attention.sdpa import SdpaAttention

    return SdpaAttention()


def _without_kernels(name: str, spec: Shape) -> AttentionBackend[Any]:
    """Plain torch, for what engine/cuda does not compute."""
    if name == "triton":
        raise ModelRefused(f"--attention triton does not compute {spec.architecture}; use --attention sdpa")
    from engine.attention.sdpa import SdpaAttention

    return SdpaAttention()


def _limits(config: EngineConfig, spec: Shape, host: Host) -> Limits:
    """As wanted, whatever the cache will hold."""
    on_cpu = host.device.type == "cpu"
    wanted = config.max_model_len or spec.context_length
    if wanted > spec.longest_context:
        raise ModelRefused(
            f"--max-model-len {wanted} is more than the model's context of {spec.longest_context} tokens"
        )
    return Limits(
        max_seqs=config.max_seqs or (CPU_SEQS if on_cpu else GPU_SEQS),
        max_step_tokens=config.max_step_tokens or (CPU_STEP_TOKENS if on_cpu else GPU_STEP_TOKENS),
        mixed_prompt_tokens=config.mixed_prompt_tokens or MIXED_PROMPT_TOKENS,
        max_model_len=wanted,
        block_size=config.block_size,
        max_waiting=config.max_waiting,
        max_waiting_tokens=config.max_waiting_tokens,
        prefix_caching=config.prefix_caching,
        fairness=config.fairness,
    )


def _allocate_cache(
    config: EngineConfig, checkpoint: Checkpoint, host: Host, working: int, peers: Peers
) -> tuple[Limits, KVCache]:
    """working: bytes to be left free for the steps themselves. All ranks have as many blocks as the least may have."""
    spec, limits = checkpoint.spec, _limits(config, checkpoint.spec, host)
    budget = config.kv_cache_bytes or _cache_budget(config, host, working)
    num_blocks = kvcache.num_blocks_for(spec, config.block_size, host.dtype, budget, limits.max_model_len)
    num_blocks = peers.least(num_blocks)
    usable_tokens = (num_blocks - kvcache.RESERVED_BLOCKS) * config.block_size
    if config.max_model_len > usable_tokens:
        per_token = kvcache.block_bytes(spec, config.block_size, host.dtype) // config.block_size
        raise OutOfMemory(
            f"a context of {config.max_model_len} tokens needs {config.max_model_len * per_token} bytes of KV cache, "
            f"{budget} are given; raise --kv-cache-memory or lower --max-model-len"
        )
    limits = replace(limits, max_model_len=min(limits.max_model_len, usable_tokens))
    return limits, kvcache.allocate(spec, num_blocks, config.block_size, host.dtype, host.device)


def _cache_budget(config: EngineConfig, host: Host, working: int) -> int:
    if host.device.type != "cuda":
        return min(kvcache.CPU_MAX_BYTES, int(available_bytes() * kvcache.CPU_SHARE / (config.sharers * config.tp)))
    free, total = torch.cuda.mem_get_info(host.device)
    budget = int(free - (1 - config.gpu_memory_fraction) * total - working)
    if budget <= 0:
        raise OutOfMemory(
            f"nothing is left for the KV cache: {host.device} has {total / GIB:.1f} GiB, of which {free / GIB:.1f} are "
            f"free beside the weights, and steps need {working / GIB:.1f}; {REMEDIES}"
        )
    return budget


def _check_weights_fit(config: EngineConfig, spec: Shape, host: Host) -> None:
    if host.device.type != "cuda":
        return
    free, total = torch.cuda.mem_get_info(host.device)
    needed = num_parameters(spec) * host.dtype.itemsize
    allowed = free - (1 - config.gpu_memory_fraction) * total
    if needed > allowed:
        raise OutOfMemory(
            f"the weights need {needed / GIB:.1f} GiB and {host.device} has {max(allowed, 0) / GIB:.1f} GiB for them "
            f"({total / GIB:.1f} in all, {free / GIB:.1f} free); {REMEDIES}"
        )


def warm_up(runner: Runner, limits: Limits) -> None:
    """A prompt of a few tokens and one decode through the padding block: compiles kernels, fills library caches."""
    params = SamplingParams(max_tokens=2)
    count = max(1, min(4, limits.block_size - 1, limits.max_model_len - 1))
    admit = Admit(0, 0, params, [0] * count, count, [1], 0)
    runner.execute(StepPlan(0, [], [admit], [Work(0, 0, count, [], True)]))
    if count < min(limits.block_size, limits.max_model_len):
        runner.execute(StepPlan(0, [], [], [Work(0, count, 1, [], True)]))
    runner.release(0)


def _ready(checkpoint: Checkpoint, host: Host, parts: Parts, phases: Phases, whole: int) -> Ready:
    """whole: parameters of all ranks together."""
    limits = parts.limits
    return Ready(
        device=host.description,
        dtype=parts.dtype,
        attention=parts.attention,
        architecture=checkpoint.spec.architecture,
        vocab_size=checkpoint.spec.vocab_size,
        max_model_len=limits.max_model_len,
        block_size=limits.block_size,
        num_blocks=parts.cache.num_blocks,
        max_seqs=limits.max_seqs,
        max_step_tokens=limits.max_step_tokens,
        num_parameters=whole,
        weights_bytes=parts.weights_bytes,
        kv_cache_bytes=parts.cache.num_bytes,
        working_bytes=parts.working_bytes,
        phases_s=phases.seconds,
        hidden_size=checkpoint.spec.hidden,
    )
