"""How fast a server streams at 1, 8 and 32 streams, on this machine, now.

    make bench                                                    our server, started for it, default model
    make bench ARGS="--rounds 3 --output benchmarks/results/x.json"
    make bench ARGS="--schema --rounds 3"             our server at 32 streams, with a JSON schema and without, in turn
    make bench ARGS="--url llama=http://127.0.0.1:8080/v1=smollm2"    the named servers too, in turn, in each round

Ratios within one run hold; absolute figures are this machine's at this hour.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks.load import Figures, Workload, drive

READY_S = 600
CONCURRENCY = {1: 5, 8: 32, 32: 96}  # streams -> requests
SCHEMA_CONCURRENCY = {32: 96}
OURS = "headrace"
HELD = "with schema"
DEFAULT_MODEL = "SmolLM2-135M-Instruct"


@dataclass(frozen=True, slots=True)
class Target:
    name: str
    base_url: str
    model: str
    schema: bool = False


@contextmanager
def our_server(flags: list[str]) -> Iterator[tuple[Target, float]]:
    """Started on a free port; yields it and its seconds to ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "gateway", "serve", "--port", str(port), "--log-level", "warning", *flags]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        wait_ready(process, f"http://127.0.0.1:{port}/ready")
        yield Target(OURS, f"http://127.0.0.1:{port}/v1", DEFAULT_MODEL), time.perf_counter() - started
    finally:
        process.terminate()
        process.wait(60)


def wait_ready(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"the server ended with code {process.returncode} before it was ready")
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    raise SystemExit(f"{url} was not ready within {READY_S} s")


def parse_target(text: str) -> Target:
    name, base_url, model = text.split("=")
    return Target(name, base_url.rstrip("/"), model)


def measure(targets: list[Target], rounds: int, levels: Mapping[int, int]) -> dict[tuple[str, int], list[Figures]]:
    """Every target in turn at each level, so that a slow minute of the machine hits all alike."""
    results: dict[tuple[str, int], list[Figures]] = {}
    for target in targets:
        warm_up = Workload(8, 8, output_len=32, seed=999, schema=target.schema)
        asyncio.run(drive(target.base_url, target.model, warm_up))
    for turn in range(1, rounds + 1):
        for streams, requests in levels.items():
            for target in targets:
                seed = turn * 100 + streams + 10_000 * target.schema  # its own, or prefix caches would answer
                work = Workload(streams, requests, seed=seed, schema=target.schema)
                got = asyncio.run(drive(target.base_url, target.model, work))
                results.setdefault((target.name, streams), []).append(got)
                print(
                    f"round {turn}  {target.name:>12}  {streams:>3} streams  {got.output_tok_per_s:8.1f} tok/s",
                    flush=True,
                )
    return results


def report(results: dict[tuple[str, int], list[Figures]]) -> list[dict[str, object]]:
    """Prints the table: medians over the rounds, and the range of throughput."""
    print("\n" + columns("server", "streams", "tok/s", "range", "TTFT p50", "p99", "ITL p50", "p99"))
    rows: list[dict[str, object]] = []
    for (name, streams), runs in sorted(results.items(), key=lambda item: (item[0][1], item[0][0])):
        speeds = [run.output_tok_per_s for run in runs]
        ttft50, ttft99, itl50, itl99 = (
            statistics.median(getattr(run, which)[q] for run in runs)
            for which, q in (("ttft_ms", "p50"), ("ttft_ms", "p99"), ("itl_ms", "p50"), ("itl_ms", "p99"))
        )
        spread = f"{min(speeds):.1f} - {max(speeds):.1f}"
        middle = statistics.median(speeds)
        waits = (f"{value:.1f}" for value in (ttft50, ttft99, itl50, itl99))
        print(columns(name, str(streams), f"{middle:.1f}", spread, *waits))
        rows.append({"server": name, "streams": streams, "tok_per_s": middle, "rounds": [asdict(run) for run in runs]})
    return rows


def schema_ratio(results: dict[tuple[str, int], list[Figures]]) -> float:
    """Throughput with a schema over that without, the median over the rounds."""
    (streams,) = SCHEMA_CONCURRENCY
    pairs = zip(results[HELD, streams], results[OURS, streams], strict=True)
    return round(statistics.median(held.output_tok_per_s / free.output_tok_per_s for held, free in pairs), 4)


def columns(*cells: str) -> str:
    return " ".join(cell.rjust(width) for cell, width in zip(cells, (12, 8, 8, 17, 9, 9, 8, 8), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--url", action="append", default=[], metavar="NAME=URL=MODEL", help="a running server as well")
    parser.add_argument("--schema", action="store_true", help="our server with a JSON schema and without, in turn")
    parser.add_argument("--flag", action="append", default=[], help="for our server, such as --flag=--dtype=float32")
    parser.add_argument("--output", type=Path, help="keep the JSON here too")
    args = parser.parse_args()
    with our_server(args.flag) as (ours, ready_s):
        print(f"{OURS} was ready after {ready_s:.1f} s")
        held = [replace(ours, name=HELD, schema=True)] if args.schema else []
        levels = SCHEMA_CONCURRENCY if args.schema else CONCURRENCY
        results = measure([ours, *held, *map(parse_target, args.url)], args.rounds, levels)
    rows = report(results)
    summary = {
        "benchmark": "serving",
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": {"processor": processor(), "cores": os.cpu_count(), "system": platform.platform(terse=True)},
        "command": "python -m benchmarks.serving " + " ".join(sys.argv[1:]),
        "ready_s": round(ready_s, 2),
        "results": rows,
    }
    if args.schema:
        summary["schema_ratio"] = schema_ratio(results)
    line = json.dumps(summary)
    if args.output:
        args.output.write_text(line + "\n")
    print(line)


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
