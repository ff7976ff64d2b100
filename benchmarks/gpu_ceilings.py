"""What the device can do: copies, a large matrix product, and all products of one decode step of a shape."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu_report import Report
from engine.loaders.safetensors import read_json
from engine.models.spec import ModelSpec, spec_from_config

REPEATS = 20


def seconds(call: Callable[[], object], device: torch.device, repeats: int = REPEATS) -> float:
    """The median over the repeats."""
    for _ in range(3):
        call()
    if device.type != "cuda":
        return statistics.median(_timed(call) for _ in range(repeats))
    pairs = []
    for _ in range(repeats):
        pair = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        pair[0].record()
        call()
        pair[1].record()
        pairs.append(pair)
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in pairs) / 1e3


def _timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def measure(folders: dict[str, Path], device: torch.device, rows: tuple[int, ...], tiny: bool, report: Report) -> None:
    report.attempt("copy_gb_s", lambda: _copy(device, 1 << (22 if tiny else 31)))
    report.attempt("matmul_tflop_s", lambda: _matmul(device, 256 if tiny else 8192))
    for name, folder in folders.items():
        spec = spec_from_config(read_json(folder / "config.json"))
        report.attempt(f"products_ms {name}", lambda spec=spec: _products(spec, device, rows), 5)


def _copy(device: torch.device, num_bytes: int) -> float:
    source = torch.ones(num_bytes // 2, dtype=torch.bfloat16, device=device)
    target = torch.empty_like(source)
    return round(2 * num_bytes / seconds(lambda: target.copy_(source), device) / 1e9, 1)


def _matmul(device: torch.device, size: int) -> float:
    a, b = (torch.randn(size, size, device=device).to(torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    return round(2 * size**3 / seconds(lambda: torch.mm(a, b, out=out), device, 10) / 1e12, 2)


def _products(spec: ModelSpec, device: torch.device, rows: tuple[int, ...]) -> dict[str, float]:
    """Milliseconds of the products of one step at so many rows, in a CUDA graph."""

    def weight(out: int, into: int) -> Tensor:
        return torch.empty(out, into, dtype=torch.bfloat16, device=device).normal_(0, 0.02)

    layers = [
        (
            weight(spec.q_size + 2 * spec.kv_size, spec.hidden),
            weight(spec.hidden, spec.q_size),
            weight(2 * spec.ffn, spec.hidden),
            weight(spec.hidden, spec.ffn),
        )
        for _ in range(spec.num_layers)
    ]
    weights = [*(each for layer in layers for each in layer), weight(spec.vocab_size, spec.hidden)]
    found: dict[str, Any] = {"weights_gb": round(sum(2 * each.numel() for each in weights) / 1e9, 3)}
    for num in rows:
        inputs = {
            size: torch.randn(num, size, device=device).to(torch.bfloat16) for size in {w.shape[1] for w in weights}
        }

        def step(inputs: dict[int, Tensor] = inputs) -> None:
            for each in weights:
                F.linear(inputs[each.shape[1]], each)

        found[str(num)] = round(seconds(_graphed(step, device), device, 10) * 1e3, 3)
    return found


@torch.inference_mode()
def _graphed(step: Callable[[], None], device: torch.device) -> Callable[[], object]:
    if device.type != "cuda":
        return step
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay
