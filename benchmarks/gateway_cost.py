"""What the gateway costs: the real process, between an engine that computes nothing and a client that only counts.

    python -m benchmarks.gateway_cost
    python -m benchmarks.gateway_cost --streams 256 --tokens 128 --step-ms 12 --clients 2
    python -m benchmarks.gateway_cost --streams 16 --step-ms 10 --burst 512     so many requests come while streams run

Its CPU time is the figure to look at: on a small machine all three share the cores, and rates say more of those.
us/token: processor time of the gateway for one more token of a stream, from answers of two lengths; us/request: what
is left of a request. step 0: a step begins when the gateway has read the one before. TTFT: of all streams sent at one
moment, the best round. ITL: between reads of a stream, the median round. Where the gateway is late, tokens share
events, and cost less: look at events/tok too. --step-ms 4 --turns 4: as fast as a small model on a large GPU.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from benchmarks.cpu_servers import wait_ready
from benchmarks.lean_client import Seen, Work, body, drive
from benchmarks.load import WORDS

MODEL = "SmolLM2-135M-Instruct"  # of which only the tokenizer is used
PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
SHORT = 8  # tokens of the answers that tell what a request costs
LEAD_S = 0.5  # for the clients to connect


@dataclass(frozen=True, slots=True)
class Run:
    tokens: int
    requests: int
    wall_s: float
    cpu_s: float
    events: int
    reads: int
    ttft_ms: list[float]
    itl_p99_ms: float


@dataclass(frozen=True, slots=True)
class Cost:
    endpoint: str
    streams: int
    step_ms: float
    tok_per_s: float
    events_per_token: float
    busy: float  # share of a core that the gateway took
    us_per_token: float
    us_per_request: float
    ttft_p50_ms: float
    ttft_p99_ms: float
    itl_p99_ms: float


@dataclass(frozen=True, slots=True)
class Burst:
    endpoint: str
    streams: int
    requests: int
    longest_gap_ms: float  # of any stream that ran before
    first_ttft_ms: float  # of the requests that came
    ttft_p99_ms: float


def serve(port: int, step_ms: float, gateways: int = 1) -> int:
    """The gateway, the first of so many, in this process."""
    from gateway.config import Config
    from gateway.logs import configure_logging
    from gateway.serve import Surroundings, serve

    configure_logging("warning")
    command = (sys.executable, "-m", "benchmarks.null_engine", str(step_ms))
    quiet = Console(file=open(os.devnull, "w"))  # noqa: SIM115
    around = Surroundings(dict(os.environ), quiet, quiet, engine_command=command)
    return serve(Config(port=port, max_seqs=1024, log_level="warning", gateways=gateways), around)


@contextmanager
def gateway(step_ms: float, gateways: int = 1) -> Iterator[tuple[int, int]]:
    """(process id, port)"""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "benchmarks.gateway_cost", "--serve", str(port), "--step-ms", str(step_ms)]
    command += ["--gateways", str(gateways)]
    process = subprocess.Popen(command)
    try:
        wait_ready(process, f"http://127.0.0.1:{port}/ready")
        yield process.pid, port
    finally:
        process.terminate()
        process.wait(30)


def cpu_s(pid: int) -> float:
    """Of all threads of a process so far."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


class Bench:
    """One gateway, and the clients that ask it."""

    def __init__(self, pid: int, port: int, args: argparse.Namespace, pool: ProcessPoolExecutor) -> None:
        self._pid, self._port, self._args, self._pool = pid, port, args, pool
        self._rng = random.Random(args.seed)

    def bodies(self, endpoint: str, num: int, tokens: int) -> list[bytes]:
        texts = [" " + " ".join(self._rng.choices(WORDS, k=self._args.words)) for _ in range(num)]
        return [body(MODEL, endpoint, text, tokens) for text in texts]

    def run(self, endpoint: str, streams: int, tokens: int, turns: int = 1) -> Run:
        num, bodies = self._args.clients, self.bodies(endpoint, streams, tokens)
        start_at = time.monotonic() + LEAD_S
        work = [Work(self._port, PATHS[endpoint], bodies[place::num], turns, start_at) for place in range(num)]
        asked = [self._pool.submit(drive, each) for each in work]
        time.sleep(LEAD_S * 0.9)
        before = cpu_s(self._pid)
        seen: list[Seen] = [each.result() for each in asked]
        spent = cpu_s(self._pid) - before
        got = sum(each.tokens for each in seen)
        if got != streams * tokens * turns:
            raise SystemExit(f"{got} tokens came of {streams * tokens * turns}")
        ttft = sorted(seconds * 1e3 for each in seen for seconds in each.ttft_s)
        wall = max(each.ended_at for each in seen) - start_at
        events, reads = sum(each.events for each in seen), sum(each.reads for each in seen)
        gaps = sorted(gap for each in seen for gap in each.itl_s)
        return Run(got, streams * turns, wall, spent, events, reads, ttft, gaps[int(len(gaps) * 0.99)] * 1e3)

    def burst(self, endpoint: str, streams: int) -> Burst:
        """Streams run from one client; in their middle, another sends many requests at one moment."""
        args, path = self._args, PATHS[endpoint]
        start_at = time.monotonic() + 2 * LEAD_S
        middle = start_at + args.tokens * args.step_ms / 1e3 / 2
        steady = Work(self._port, path, self.bodies(endpoint, streams, args.tokens), 1, start_at)
        sudden = Work(self._port, path, self.bodies(endpoint, args.burst, SHORT), 1, middle)
        running, coming = (self._pool.submit(drive, work) for work in (steady, sudden))
        ttft = sorted(coming.result().ttft_s)
        first, last = ttft[0], ttft[int(len(ttft) * 0.99)]
        gap_ms = max(running.result().itl_s) * 1e3
        return Burst(endpoint, streams, args.burst, *(round(ms, 1) for ms in (gap_ms, first * 1e3, last * 1e3)))

    def cost(self, endpoint: str, streams: int) -> Cost:
        """Processor time: of the cheapest rounds, for what else the machine does can only add to it."""
        args = self._args
        turns = max(1, args.requests // streams)
        short = [self.run(endpoint, streams, SHORT, turns) for _ in range(args.rounds)]
        long = [self.run(endpoint, streams, args.tokens, args.turns) for _ in range(args.rounds)]
        short_s, long_s = (min(run.cpu_s / run.requests for run in runs) for runs in (short, long))
        per_token = (long_s - short_s) / (args.tokens - SHORT)
        ttft = [run.ttft_ms for run in long]
        return Cost(
            endpoint,
            streams,
            args.step_ms,
            round(max(run.tokens / run.wall_s for run in long)),
            round(statistics.fmean(run.events / run.tokens for run in long), 3),
            round(statistics.median(run.cpu_s / run.wall_s for run in long), 2),
            round(per_token * 1e6, 1),
            round((short_s - per_token * SHORT) * 1e6),
            round(min(each[len(each) // 2] for each in ttft), 1),
            round(min(each[int(len(each) * 0.99)] for each in ttft), 1),
            round(statistics.median(run.itl_p99_ms for run in long), 1),
        )


COLUMNS = (
    *("endpoint", "streams", "step ms", "tok/s", "events/tok", "busy"),
    *("us/token", "us/req", "TTFT p50", "TTFT p99", "ITL p99"),
)


def measure(args: argparse.Namespace) -> list[Cost]:
    rows = []
    print(" ".join(name.rjust(11) for name in COLUMNS))
    context = multiprocessing.get_context("spawn")
    with gateway(args.step_ms) as (pid, port), ProcessPoolExecutor(args.clients, context) as pool:
        bench = Bench(pid, port, args, pool)
        for endpoint in args.endpoints:
            bench.run(endpoint, 64, 32)
            for streams in args.streams:
                rows.append(bench.cost(endpoint, streams))
                print(" ".join(str(value).rjust(11) for value in asdict(rows[-1]).values()), flush=True)
    return rows


def measure_bursts(args: argparse.Namespace) -> list[Burst]:
    rows = []
    context = multiprocessing.get_context("spawn")
    with gateway(args.step_ms) as (pid, port), ProcessPoolExecutor(2, context) as pool:
        bench = Bench(pid, port, args, pool)
        for endpoint in args.endpoints:
            bench.run(endpoint, 64, 32)
            for streams in args.streams:
                for _ in range(args.rounds):
                    rows.append(bench.burst(endpoint, streams))
                    print("  ".join(f"{name} {value}" for name, value in asdict(rows[-1]).items()), flush=True)
    return rows


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=numbers, default=[64, 256])
    parser.add_argument("--tokens", type=int, default=128, help="of an answer")
    parser.add_argument("--words", type=int, default=128, help="of a prompt")
    parser.add_argument("--step-ms", type=float, default=0.0, help="between two tokens of a stream")
    parser.add_argument("--requests", type=int, default=512, help="with short answers, each round")
    parser.add_argument("--turns", type=int, default=1, help="of each connection, with long answers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", type=int, default=1, help="processes")
    parser.add_argument("--endpoints", type=lambda text: text.split(","), default=[*PATHS])
    parser.add_argument("--burst", type=int, default=0, help="measure that many requests that come while streams run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gateways", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        sys.exit(serve(args.serve, args.step_ms, args.gateways))
    rows = measure_bursts(args) if args.burst else measure(args)
    summary = {"benchmark": "gateway_cost", "cores": os.cpu_count(), "python": sys.version.split()[0]}
    print(json.dumps({**summary, "rows": [asdict(row) for row in rows]}))


if __name__ == "__main__":
    main()
