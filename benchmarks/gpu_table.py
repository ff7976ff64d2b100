"""The table of a run of benchmarks/gpu.py: ours, vLLM's, and what is to be reached, line by line.

vLLM 0.26.0 and the floors were measured by us on one NVIDIA H100 80GB HBM3 on 2026-11-21 with the same shapes and
workloads, torch 2.11.0+cu130 (single runs but for the batches). They hold for that card only.
Of four clients only the means of its TTFT were told, not p99: there means are compared, with its largest. Four clients
at one gateway are told for comparison; what is needed is needed of four gateways.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

NAMES = {"llama8b": "8B", "qwen06b": "0.6B"}


@dataclass(frozen=True, slots=True)
class Line:
    part: str
    row: str
    value: Callable[[dict[str, Any]], float]
    unit: str
    vllm: str
    needed: float
    at_most: bool = False

    @property
    def name(self) -> str:
        kind, _, shape = self.part.partition(":")
        return f"{NAMES[shape]} {kind}, {self.row}"


def _lines() -> list[Line]:
    lines = []
    for shape, vllm, needed in (("llama8b", "8,170-8,600", 8600), ("qwen06b", "18,400-19,000", 20000)):
        lines.append(Line(f"offline:{shape}", "w1", lambda row: row["tok_s"], "tok/s", vllm, needed))
    for shape, batch, vllm, most in (
        ("llama8b", 1, "6.50", 6.1),
        ("qwen06b", 1, "2.25", 1.4),
        ("llama8b", 32, "7.13", 6.6),
        ("qwen06b", 32, "3.1", 1.9),
        ("llama8b", 128, "9.1", 8.3),
        ("qwen06b", 128, "4.4", 3.2),
    ):
        lines.append(
            Line(f"offline:{shape}", f"batch {batch}", lambda row: row["ms_step"], "ms/step", vllm, most, True)
        )
    lines.append(Line("offline:llama8b", "prefill", lambda row: row["tok_s"], "tok/s", "42,500", 43000))
    for shape, level, speed, ttft, itl, needed in (
        ("qwen06b", "1x64", "10,752", 210, 13.9, 14000),
        ("qwen06b", "1x256", "11,163-15,013", 629, 51.8, 18000),
        ("qwen06b", "4x64", "17,689 (1 gateway)", 321, 39, 17689),
        ("qwen06b", "4x64, 4 gateways", "27,081", 129, 41, 34000),
        ("llama8b", "1x64", "6,423", 346, 19.3, 7200),
        ("llama8b", "1x256", "10,777", 1077, 127, 13000),
    ):
        part = f"http:{shape}"
        lines.append(Line(part, level, lambda row: row["tok_s"], "tok/s", speed, needed))
        most = round(0.8 * ttft, 1)
        of = "mean" if level.startswith("4x") else "p99"
        told = lambda row, of=of: row["ttft_ms"][of]  # noqa: E731
        lines.append(Line(part, level, told, f"TTFT {of} ms", str(ttft), most, True))
        lines.append(Line(part, level, lambda row: row["itl_ms"]["p99"], "ITL p99 ms", str(itl), itl, True))
    return lines


def table(found: dict[str, Any]) -> str:
    rows = [("workload", "ours", "vLLM 0.26", "needed", "holds")]
    for line in _lines():
        row = found.get(line.part, {}).get(line.row)
        if row is None:
            continue
        value = line.value(row)
        holds = value <= line.needed if line.at_most else value >= line.needed
        bound = f"{'at most' if line.at_most else 'at least'} {line.needed:,}"
        rows.append((f"{line.name}: {line.unit}", f"{value:,.2f}", line.vllm, bound, "yes" if holds else "NO"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
