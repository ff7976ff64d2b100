"""How far `headrace bench` is from another load generator on the same server, and that one from itself.

    python -m benchmarks.agreement PATH/load.py                  the default model
    python -m benchmarks.agreement PATH/load.py --step-ms 10     an engine that computes nothing, a token each 10 ms

In each round three runs, who is first changing from round to round: the other generator, ours without keep-alive (it
makes a connection for each request), the other again. Prompts are new in every run, and asked for in the same lengths.
Compared are the medians over the rounds: of ours with all runs of the other, and of its second runs with its first,
which is how far two runs of one program are apart here. One last line of JSON.

The other one is called as `load.py --base-url URL/v1 --model NAME --concurrency N --requests N --output-len N --seed N`
and prints one JSON object whose fields are named as those of our levels.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import gateway_cost
from benchmarks.cpu_machine import commit, machine
from benchmarks.cpu_servers import MODEL, ROOT, ours, running

OURS, FIRST, AGAIN = "ours", "theirs", "theirs again"
OUTPUT_LEN = 64
FIGURES = (
    "output_tok_per_s",
    *(f"{name} {p}" for name in ("ttft_ms", "itl_ms", "tpot_ms", "e2e_ms") for p in ("p50", "p99")),
)
WITHIN = 0.05
RUN_S = 600.0

Runs = dict[str, list[Mapping[str, Any]]]


def value(figures: Mapping[str, Any], name: str) -> float:
    found: Any = figures
    for part in name.split():
        found = found[part]
    return float(found)


def ratios(runs: Runs, name: str) -> tuple[float, float]:
    """(ours over the other's, its second runs over its first), each of medians over the rounds."""
    of = {who: [value(each, name) for each in each_run] for who, each_run in runs.items()}
    median = statistics.median
    return median(of[OURS]) / median(of[FIRST] + of[AGAIN]), median(of[AGAIN]) / median(of[FIRST])


@contextmanager
def server(step_ms: float | None) -> Iterator[tuple[str, str]]:
    """(address, the model's name there)"""
    if step_ms is None:
        with running(ours([])) as up:
            yield up.base_url.removesuffix("/v1"), MODEL
    else:
        with gateway_cost.gateway(step_ms) as (_, port):
            yield f"http://127.0.0.1:{port}", gateway_cost.MODEL


class Generators:
    def __init__(self, other: Path, url: str, model: str, output_len: int) -> None:
        self._other, self._url, self._model, self._output_len = other, url, model, output_len

    def run(self, who: str, streams: int, requests: int) -> Mapping[str, Any]:
        """Raises CalledProcessError where a run fails, which the other's also does where a request does."""
        asked = ["--model", self._model, "--concurrency", str(streams), "--requests", str(requests)]
        asked += ["--output-len", str(self._output_len), "--seed", str(random.randrange(2**31))]
        if who != OURS:
            return _last_line([sys.executable, str(self._other), "--base-url", f"{self._url}/v1", *asked])
        bench = [sys.executable, "-m", "gateway", "bench", self._url, "--warmup", "0", "--no-keep-alive"]
        level: Mapping[str, Any] = _last_line([*bench, *asked])["servers"][0]["levels"][0]
        return level


def _last_line(command: Sequence[str]) -> dict[str, Any]:
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=RUN_S).stdout
    told: dict[str, Any] = json.loads(said.strip().splitlines()[-1])
    return told


def measure(generators: Generators, levels: Sequence[tuple[int, int]], rounds: int) -> dict[int, Runs]:
    found: dict[int, Runs] = {streams: {OURS: [], FIRST: [], AGAIN: []} for streams, _ in levels}
    generators.run(FIRST, *levels[-1])  # the server's first requests are slower than others
    for turn in range(rounds):
        for streams, requests in levels:
            order = [FIRST, OURS, AGAIN]
            for who in order[turn % 3 :] + order[: turn % 3]:
                found[streams][who].append(generators.run(who, streams, requests))
                speed = value(found[streams][who][-1], FIGURES[0])
                print(f"round {turn + 1}  {streams:>3} streams  {who:<13}{speed:8.1f} tok/s", flush=True)
    return found


def rows(streams: int, requests: int, runs: Runs) -> Iterator[dict[str, Any]]:
    """Each figure: of every run, and compared."""
    for name in FIGURES:
        of = {who: [value(each, name) for each in runs[who]] for who in (OURS, FIRST, AGAIN)}
        ratio, itself = (round(each, 4) for each in ratios(runs, name))
        row = {"streams": streams, "requests": requests, "figure": name, **of, "ratio": ratio, "theirs_again": itself}
        mine, others = statistics.median(of[OURS]), statistics.median(of[FIRST] + of[AGAIN])
        beyond = "" if abs(ratio - 1) <= WITHIN else f"   beyond {WITHIN:.0%}"
        print(f"{name:<30}{mine:9.1f}{others:9.1f}{ratio:8.3f}{itself:9.3f}{beyond}")
        yield row


def level(text: str) -> tuple[int, int]:
    streams, _, requests = text.partition(":")
    return int(streams), int(requests)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="the other load generator")
    parser.add_argument("--levels", type=level, nargs="+", default=[(1, 32), (8, 160)], metavar="STREAMS:REQUESTS")
    parser.add_argument("--output-len", type=int, default=OUTPUT_LEN)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--step-ms", type=float, help="no model: a token for each stream so often")
    args = parser.parse_args()
    other = args.other.resolve()
    os.chdir(ROOT)
    about = {"benchmark": "agreement", "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "machine": machine()}
    flags = [f"{streams}:{requests}" for streams, requests in args.levels]
    pace = f" --step-ms {args.step_ms:g}" if args.step_ms else ""
    command = f"python -m benchmarks.agreement {other.name} --rounds {args.rounds} --levels {' '.join(flags)}{pace}"
    command += f" --output-len {args.output_len}" if args.output_len != OUTPUT_LEN else ""
    asked = {"command": command, "step_ms": args.step_ms, "rounds": args.rounds, "output_len": args.output_len}
    with server(args.step_ms) as (url, model):
        found = measure(Generators(other, url, model, args.output_len), args.levels, args.rounds)
    told = []
    for streams, requests in args.levels:
        print(f"\n{streams} streams, {requests} requests".ljust(34) + "ours     theirs   ratio   theirs again / theirs")
        told += rows(streams, requests, found[streams])
    print(json.dumps({**about, "commit": commit(ROOT), "other": other.name, **asked, "figures": told}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
