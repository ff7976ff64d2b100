"""What it costs to observe: tok/s at 32 streams with metrics, logs and timelines, over tok/s of a server without any.

    python -m benchmarks.observing [--rounds 6]

Both run at the same time and are asked in turn, who is first changing from round to round. There is no such option: the
bare one is this module with what counts, logs and times replaced by nothing, in gateway and engine. A figure below 1 is
what it costs. One last line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
from contextlib import ExitStack
from typing import Any

from benchmarks.cpu_machine import machine
from benchmarks.cpu_servers import MODEL, ROOT, Server, running
from benchmarks.load import Workload, drive

MODULE = "benchmarks.observing"
EVENTS = (
    *("on_step", "on_stats", "request_ended", "prompt_computed", "first_token", "tokens", "inter_token"),
    *("choice_finished", "choice_generated", "request_generated", "loop_lag", "stream_opened", "stream_closed"),
)


def _nothing(*_: Any, **__: Any) -> None: ...


def bare_engine() -> int:
    import engine.__main__
    from scheduler import delays

    for name in ("enlist", "admit"):
        setattr(delays, name, _nothing)
    delays.WaitTotals.turn = _nothing  # type: ignore[method-assign]
    delays.PrefillShares.add = lambda *_: 0.0  # type: ignore[method-assign, assignment]
    return engine.__main__.main()


def bare_gateway(port: int) -> int:
    from rich.console import Console

    from gateway.cli import configure_logging
    from gateway.config import Config
    from gateway.metrics import Metrics
    from gateway.serve import Surroundings, serve
    from gateway.timeline.laps import Laps
    from gateway.timeline.store import Timelines

    for name in EVENTS:
        setattr(Metrics, name, _nothing)
    Laps.enter = lambda self, cause: cause  # type: ignore[method-assign]
    for kind, name in ((Laps, "note"), (Timelines, "open"), (Timelines, "close")):
        setattr(kind, name, _nothing)
    configure_logging("critical")
    command = (sys.executable, "-m", MODULE, "--engine")
    around = Surroundings(dict(os.environ), Console(), Console(stderr=True), engine_command=command)
    return serve(Config(port=port, log_level="critical", served_model_name=MODEL), around)


def servers() -> dict[str, Server]:
    whole = (sys.executable, "-m", "gateway", "serve", "--served-model-name", MODEL, "--port")
    bare = (sys.executable, "-m", MODULE, "--bare")
    return {"whole": Server("whole", "", whole, "/ready"), "bare": Server("bare", "", bare, "/ready")}


def measure(rounds: int, work: Workload) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"whole": [], "bare": []}
    with ExitStack() as stack:
        urls = {name: stack.enter_context(running(server)).base_url for name, server in servers().items()}
        for turn in range(-1, rounds):  # the first only warms up
            for name in sorted(urls, reverse=turn % 2 == 0):
                seeded = Workload(work.concurrency, work.requests, work.input_len, work.output_len, seed=f"{turn}")
                figures = asyncio.run(drive(urls[name], MODEL, seeded))
                if figures.failed:
                    raise RuntimeError(f"{figures.failed} requests to {name} failed")
                print(f"round {turn + 1}  {name:<6}{figures.output_tok_per_s:>8.1f} tok/s", flush=True)
                if turn >= 0:
                    found[name].append(figures.output_tok_per_s)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--bare", type=int, metavar="PORT", help=argparse.SUPPRESS)
    parser.add_argument("--engine", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.engine:
        return bare_engine()
    if args.bare is not None:
        return bare_gateway(args.bare)
    os.chdir(ROOT)
    found = measure(args.rounds, Workload(32, 96, input_len=64, output_len=64))
    ratios = [whole / bare for whole, bare in zip(found["whole"], found["bare"], strict=True)]
    median = statistics.median(ratios)
    print(f"with all of it, of without: {median:.3f} (rounds {min(ratios):.3f} to {max(ratios):.3f}); needed: 0.97")
    print(json.dumps({"benchmark": "observing", "machine": machine(), "tok_s": found, "ratio": round(median, 4)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
