"""Offline workloads of one model shape, in one engine: W1, batches of 128 in and 256 out, prompts alone, long ones.

W1: output tokens over the wall time from submission to the last token.
Batches, ms_step: over the steps that decode the whole batch, from the end of the first to the end of the last, divided
by their number; prompts and their steps are not in it. ms_whole: wall time with the prompts, divided by tokens out.
Prompts: prompt tokens over the wall time until each has its first token, and asks for no more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.gpu_engine import LocalEngine, Run, greedy, kinds
from benchmarks.gpu_models import Workload, fixed, w1
from benchmarks.gpu_report import Report

PROFILED_STEPS = 24


@dataclass(frozen=True, slots=True)
class OfflineSizes:
    w1: tuple[int, int, int]  # requests, shortest, longest
    w1_seeds: tuple[int, ...]
    batches: tuple[int, ...]
    batch_in: int
    batch_out: int
    prefill: tuple[int, int]  # prompts, tokens of each
    long: tuple[int, int]  # prompts, tokens of each: long enough for attention to weigh
    profiled: tuple[int, ...] = ()  # batches whose kernels are listed


OFFLINE = OfflineSizes((256, 100, 1024), (0, 1), (1, 32, 128), 128, 256, (64, 1024), (2, 32_000), (1, 32, 256))
OFFLINE_TINY = OfflineSizes((8, 10, 40), (0,), (1, 4), 16, 8, (4, 64), (2, 100), (2,))


def measure(engine: LocalEngine, sizes: OfflineSizes, report: Report, profile: bool) -> None:
    report.put("engine", engine.told())
    seeds = iter(range(1000, 2000))  # no prompt comes twice, or the prefix cache would answer

    def batch(num: int) -> dict[str, Any]:
        return _batch(engine, num, sizes, next(seeds))

    first = max(sizes.batches)
    report.attempt("warm-up", lambda: _told_batch(engine.run(_jobs(fixed(first, 16, 8, next(seeds)))), first, 8))
    report.attempt("w1", lambda: _w1(engine, w1(*sizes.w1, seed=sizes.w1_seeds[0])), 20)
    for num in sizes.batches:
        report.attempt(f"batch {num}", lambda num=num: _best(batch(num), batch(num)), 5)
    report.attempt("prefill", lambda: _best_prefill(engine, sizes.prefill, (next(seeds), next(seeds))), 5)
    report.attempt("long prompts", lambda: _best_prefill(engine, sizes.long, (next(seeds), next(seeds))), 10)
    for seed in sizes.w1_seeds[1:]:
        report.attempt(f"w1 seed {seed}", lambda seed=seed: _w1(engine, w1(*sizes.w1, seed=seed)), 30)
    if profile:
        for num in sizes.profiled:
            jobs = _jobs(fixed(num, sizes.batch_in, PROFILED_STEPS + 8, next(seeds)))
            report.attempt(f"kernels {num}", lambda jobs=jobs: kernels(engine, jobs), 15)
        jobs = _jobs(fixed(*sizes.prefill, 1, next(seeds)))
        report.attempt("kernels prefill", lambda: kernels(engine, jobs), 15)


def _jobs(work: Workload) -> list[Any]:
    return greedy(work.prompts, work.out)


def _w1(engine: LocalEngine, work: Workload) -> dict[str, Any]:
    run = engine.run(_jobs(work))
    return {
        "tok_s": round(work.num_out / run.wall_s, 1),
        "wall_s": round(run.wall_s, 3),
        "prompt_tokens": work.num_in,
        "output_tokens": sum(len(answer.tokens) for answer in run.answers),
        "cached_tokens": sum(answer.cached_tokens for answer in run.answers),
        "preemptions": engine.scheduler.stats().preemptions,
        "kinds": kinds(run.steps),
        **_host(run),
    }


def _batch(engine: LocalEngine, num: int, sizes: OfflineSizes, seed: int) -> dict[str, Any]:
    run = engine.run(_jobs(fixed(num, sizes.batch_in, sizes.batch_out, seed)))
    return _told_batch(run, num, sizes.batch_out)


def _told_batch(run: Run, num: int, num_out: int) -> dict[str, Any]:
    whole = [step for step in run.steps if step.record.kind == "decode" and step.record.num_seqs == num]
    if len(whole) < 2:
        raise RuntimeError(f"only {len(whole)} steps decode all {num} sequences")
    ms = (whole[-1].ended_at - whole[0].ended_at) / (len(whole) - 1) * 1e3
    return {
        "ms_step": round(ms, 4),
        "ms_whole": round(run.wall_s / num_out * 1e3, 4),
        "first_ms": round((run.steps[0].ended_at - run.began) * 1e3, 2),
        "decode_steps": len(whole),
        **_host(run),
    }


def _host(run: Run) -> dict[str, float]:
    """Milliseconds a step that the host spent launching, waiting, and with all else: planning, committing, sending."""
    num = max(1, len(run.steps))
    rest = run.wall_s - run.launch_s - run.finish_s
    named = {"launch": run.launch_s, "wait": run.finish_s, "rest": rest}
    return {f"host_{name}_ms": round(seconds / num * 1e3, 4) for name, seconds in named.items()}


def _best(*runs: dict[str, Any]) -> dict[str, Any]:
    best = min(runs, key=lambda run: run["ms_step"])
    return {**best, "runs_ms_step": [run["ms_step"] for run in runs]}


def _best_prefill(engine: LocalEngine, size: tuple[int, int], seeds: tuple[int, ...]) -> dict[str, Any]:
    num, length = size
    speeds = []
    for seed in seeds:
        run = engine.run(_jobs(fixed(num, length, 1, seed)))
        speeds.append(round(num * length / run.wall_s, 1))
    return {"tok_s": max(speeds), "runs": speeds, "kinds": kinds(run.steps), **_host(run)}


def kernels(engine: LocalEngine, jobs: list[Any]) -> dict[str, Any]:
    """Which kernels the time goes to. The profiler slows the host down, so only times on the device mean something."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    on_device = torch.cuda.is_available()
    activity = ProfilerActivity.CUDA if on_device else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiler:
        run = engine.run(jobs)
        if on_device:
            torch.cuda.synchronize()
    which = "self_device_time_total" if on_device else "self_cpu_time_total"
    events = sorted(profiler.key_averages(), key=lambda event: -getattr(event, which))
    total = sum(getattr(event, which) for event in events) or 1
    rows = [
        [event.key[:90], event.count, round(getattr(event, which) / 1e3, 3), round(getattr(event, which) / total, 3)]
        for event in events[:20]
    ]
    return {"steps": len(run.steps), "device_ms": round(total / 1e3, 3), "name, calls, ms, share": rows}
