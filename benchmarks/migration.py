"""Kills the engine under answers and compares them with those of an undisturbed run; reports how long they paused.

    python -m benchmarks.migration                       every tenth token of 200, each kind of answer: half an hour
    python -m benchmarks.migration --every 50 --kinds greedy,stop --replicas 2
    python -m benchmarks.migration --streams 64 --period 5 --seconds 60      a crowd, killed every five seconds
    python -m benchmarks.migration --shape qwen06b --tp 2 --device cuda --kinds greedy,stop     a rank of two
    python -m benchmarks.migration --shape qwen06b --prefill 2200      no kill: one step of some 30 s is no hang

The default model on this machine, or random weights in a shape of benchmarks/gpu_models.py (no chat then, so no
json_schema), in float32 unless --dtype says otherwise. Prints a table, and one line of JSON last. Ends with 1 where an
answer is another.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from benchmarks.gateway_cost import cpu_s
from benchmarks.gpu_http import environment
from benchmarks.gpu_models import CONFIGS, model_folder
from tests.fixtures.server import MODEL, RunningServer, command_of, eventually, processes, serving

STORY = "Once upon a time there was a"
SCHEMA = {
    "type": "object",
    "properties": {"names": {"type": "array", "items": {"type": "string", "maxLength": 30}, "minItems": 20}},
    "required": ["names"],
    "additionalProperties": False,
}
LIMIT_S = 600.0
POLL_S = 0.2
Body = dict[str, Any]


@dataclass
class Seen:
    texts: dict[int, str] = field(default_factory=dict)
    finishes: dict[int, str] = field(default_factory=dict)
    num_tokens: int = 0
    usage: dict[str, Any] | None = None
    error: str | None = None
    pauses_s: list[float] = field(default_factory=list)  # before the events that tell of a migration
    last_at: float = field(default_factory=time.monotonic)

    def add(self, line: str) -> None:
        now = time.monotonic()
        if line == ": migrated":
            self.pauses_s.append(now - self.last_at)
        if not line.startswith("data: {"):
            return
        self.last_at = now
        chunk = json.loads(line.removeprefix("data: "))
        if "error" in chunk:
            self.error = chunk["error"]["code"]
            return
        for choice in chunk["choices"]:
            index, said = choice["index"], choice.get("delta", choice)
            self.texts[index] = self.texts.get(index, "") + (said.get("text") or said.get("content") or "")
            self.num_tokens += len(choice.get("token_ids") or ()) or 1
            if choice["finish_reason"]:
                self.finishes[index] = choice["finish_reason"]
        self.usage = chunk.get("usage") or self.usage

    @property
    def content(self) -> tuple[object, ...]:
        used = (self.usage or {}).get("completion_tokens")
        return self.texts, self.finishes, used, self.error


async def ask(client: httpx.AsyncClient, body: Body, watch: Callable[[Seen], None] = lambda seen: None) -> Seen:
    seen = Seen()
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    told = {"model": MODEL, "stream": True, "stream_options": {"include_usage": True}, **body}
    async with client.stream("POST", path, json=told) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            seen.add(line)
            watch(seen)
    return seen


def workers(server: RunningServer) -> list[int]:
    """The engines, and the ranks beside each."""
    engines, parents = server.engine_pids(), processes()
    return engines + [pid for pid, parent in parents.items() if parent in engines and "engine" in command_of(pid)]


class Killer:
    """Of the engine, or one rank of it, that has worked most since then."""

    def __init__(self, server: RunningServer, signum: signal.Signals) -> None:
        self._before = {pid: cpu_s(pid) for pid in workers(server)}
        self._signum = signum

    def kill(self) -> None:
        os.kill(max(self._before, key=lambda pid: cpu_s(pid) - self._before[pid]), self._signum)


def all_up(server: RunningServer, options: argparse.Namespace) -> bool:
    """Its processes too: what a server says of an engine is true until it sees it die."""
    if len(server.engine_pids()) < options.replicas or server.get("/ready").status_code != 200:
        return False
    return server.metrics()["engine_up"] == options.replicas


async def bodies_of(client: httpx.AsyncClient, num_tokens: int) -> dict[str, Body]:
    greedy = {"prompt": STORY, "temperature": 0, "max_tokens": num_tokens, "ignore_eos": True}
    text = (await ask(client, greedy)).texts[0]
    schema = {"type": "json_schema", "json_schema": {"name": "painters", "schema": SCHEMA}}
    chat = [{"role": "user", "content": "Name painters of the Renaissance."}]
    return {
        "greedy": greedy,
        "seeded": {**greedy, "temperature": 1, "seed": 11},
        "n=4": {**greedy, "temperature": 1, "seed": 5, "n": 4},
        "json_schema": {
            "messages": chat,
            "response_format": schema,
            "temperature": 1,
            "seed": 3,
            "max_tokens": num_tokens,
        },
        "stop": {**greedy, "stop": text[5:-5], "return_token_ids": True},
        "emojis": {**greedy, "prompt": "🦩🪼🦚🪿🦩🪼🦚🪿🦩🪼🦚🪿🦩🪼", "return_token_ids": True},
    }


def killer(server: RunningServer, at: int, signum: signal.Signals) -> Callable[[Seen], None]:
    """at: tokens of all choices together."""
    left, victim = [at], Killer(server, signum)

    def watch(seen: Seen) -> None:
        if left and seen.num_tokens >= left[0]:
            left.clear()
            victim.kill()

    return watch


def p99(pauses: list[float]) -> float:
    return sorted(pauses)[math.ceil(0.99 * len(pauses)) - 1]


@dataclass
class Tally:
    runs: int = 0
    differing: list[str] = field(default_factory=list)
    pauses_s: list[float] = field(default_factory=list)

    def add(self, name: str, seen: Seen, calm: Seen) -> None:
        self.runs += 1
        self.pauses_s += seen.pauses_s
        if seen.content != calm.content:
            self.differing.append(name)

    def row(self, kind: str) -> str:
        pauses, equal = self.pauses_s, self.runs - len(self.differing)
        times = f"{statistics.median(pauses):.2f} | {p99(pauses):.2f}" if pauses else "|"
        return f"| {kind} | {equal} of {self.runs} | {len(pauses)} | {times} |"


async def sweep(server: RunningServer, client: httpx.AsyncClient, options: argparse.Namespace) -> dict[str, Tally]:
    bodies = await bodies_of(client, options.tokens)
    tallies: dict[str, Tally] = {}
    for kind in options.kinds.split(",") if options.kinds else bodies:
        body, tally = bodies[kind], tallies.setdefault(kind, Tally())
        calm = await ask(client, body)
        for at in range(options.every, options.tokens, options.every):
            seen = await ask(client, body, killer(server, at * body.get("n", 1), options.signal))
            tally.add(f"{kind} at {at}", seen, calm)
            await asyncio.to_thread(eventually, lambda: all_up(server, options), "the engine is back")
        print(tally.row(kind), flush=True)
    return tallies


async def crowd(server: RunningServer, client: httpx.AsyncClient, options: argparse.Namespace) -> dict[str, Tally]:
    bodies: list[Body] = [
        {"prompt": f"{number} {STORY}", "temperature": number % 2, "seed": number}
        | {"max_tokens": options.tokens, "ignore_eos": True}
        for number in range(options.streams)
    ]
    calm = await asyncio.gather(*(ask(client, body) for body in bodies))
    asking = asyncio.gather(*(ask(client, body) for body in bodies))
    ends = time.monotonic() + options.seconds
    while time.monotonic() < ends and not asking.done():
        if not await asyncio.to_thread(all_up, server, options):
            await asyncio.sleep(POLL_S)
            continue
        victim = Killer(server, options.signal)
        await asyncio.sleep(options.period)
        if not asking.done():
            victim.kill()
    tally = Tally()
    for number, (seen, one) in enumerate(zip(await asking, calm, strict=True)):
        tally.add(f"stream {number}", seen, one)
    print(tally.row(f"{options.streams} streams"), flush=True)
    return {"crowd": tally}


async def long_prefill(
    server: RunningServer, client: httpx.AsyncClient, options: argparse.Namespace
) -> dict[str, Tally]:
    began = time.monotonic()
    prompt = [100 + place % 97 for place in range(options.prefill)]
    seen = await ask(client, {"prompt": prompt, "max_tokens": 1, "temperature": 0, "ignore_eos": True})
    took_s = time.monotonic() - began
    tally = Tally()
    disturbed = seen.error or seen.pauses_s or server.metrics()["engine_restarts_total"]
    tally.add(f"alarm in a prefill of {took_s:.1f} s", seen, Seen() if disturbed else seen)
    print(tally.row(f"prefill of {took_s:.1f} s"), flush=True)
    return {"prefill": tally}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=200, help="of an answer")
    parser.add_argument("--every", type=int, default=10, help="tokens between the places of the kill")
    parser.add_argument("--kinds", default="", help="some of greedy, seeded, n=4, json_schema, stop, emojis")
    parser.add_argument("--streams", type=int, default=0, help="so many at a time, instead of one of each kind")
    parser.add_argument("--period", type=float, default=5.0, help="seconds between kills of a crowd")
    parser.add_argument("--seconds", type=float, default=60.0, help="in which a crowd's engine is killed")
    parser.add_argument("--replicas", type=int, default=1, help="engines, of which the one that works is killed")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--shape", choices=CONFIGS, help="random weights in this shape instead of the default model")
    parser.add_argument("--tp", type=int, default=1, help="ranks of each engine, of which any may be killed")
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--signal", type=lambda name: signal.Signals[f"SIG{name}"], default=signal.SIGKILL, metavar="KILL"
    )
    parser.add_argument(
        "--prefill", type=int, default=0, help="tokens of a prompt that is computed in one step, undisturbed"
    )
    return parser.parse_args()


async def run(server: RunningServer, options: argparse.Namespace) -> dict[str, Tally]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=server.url, timeout=LIMIT_S, limits=limits) as client:
        way = long_prefill if options.prefill else crowd if options.streams else sweep
        return await way(server, client, options)


def flags_of(options: argparse.Namespace, folder: Path) -> list[str]:
    flags = ["--dtype", options.dtype, "--replicas", str(options.replicas), "--tp", str(options.tp)]
    flags += ["--device", options.device]
    if options.shape:
        model = model_folder(CONFIGS[options.shape], folder / options.shape)
        flags += ["--model", str(model), "--load-format", "dummy", "--served-model-name", MODEL]
    if options.prefill:
        flags += ["--max-model-len", str(options.prefill + 16), "--max-step-tokens", str(options.prefill + 16)]
    return flags


def main() -> int:
    options = arguments()
    print("| answers | equal | pauses | p50 s | p99 s |\n|---|---|---|---|---|", flush=True)
    # Its engine is started again after half a second each time; by itself a server waits longer from death to death.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ |= environment(folder / "site")
        with serving(folder, *flags_of(options, folder), module="tests.fixtures.fragile") as server:
            tallies = asyncio.run(run(server, options))
            metrics = server.metrics()
    differing = [name for tally in tallies.values() for name in tally.differing]
    pauses = [pause for tally in tallies.values() for pause in tally.pauses_s]
    told = {
        "runs": sum(tally.runs for tally in tallies.values()),
        "differing": differing,
        "restarts": metrics["engine_restarts_total"],
        "migrations": {end: metrics[f"migrations_total{{outcome={end}}}"] for end in ("moved", "poison", "failed")},
        "pause_p50_s": round(statistics.median(pauses), 3) if pauses else None,
        "pause_p99_s": round(p99(pauses), 3) if pauses else None,
        "options": {**vars(options), "signal": options.signal.name},
    }
    print(json.dumps(told))
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
