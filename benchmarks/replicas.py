"""Several replicas beside one, in the same run: output tokens/s with as many streams for each engine, and how much of
prompts that share beginnings is found in their prefix caches.

    python -m benchmarks.replicas --out FILE                          two engines on this machine's CPU, a tiny shape
    python -m benchmarks.replicas --shape llama8b --out FILE          Llama-3.1-8B's shape, dummy weights: two GPUs

Output tok/s count from the first request to the last answer. Hit rates are the engines' own counts. One line of JSON
comes last.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import statistics
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import httpx

from benchmarks.gpu_http import MODEL, Level, Served, _level, server
from benchmarks.gpu_models import CONFIGS, model_folder
from benchmarks.gpu_report import Report

NUM_PREFIXES, PREFIX_TOKENS, OWN_TOKENS, OUT_TOKENS = 20, 1000, 64, 16
NUM_PREFIXED, PREFIXED_STREAMS = 240, 16
MAX_ID = 500
COUNTS = re.compile(r"^headrace_(prefix_queries|prefix_hits)_total\{[^}]*\} (\S+)$", re.MULTILINE)


def counts(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found: dict[str, float] = {"prefix_queries": 0.0, "prefix_hits": 0.0}
    for name, value in COUNTS.findall(text):
        found[name] += float(value)
    return found


def prefixed() -> list[list[int]]:
    """Prompts in a fixed random order, of which as many begin alike as there are beginnings' shares."""
    draw = random.Random(8)
    beginnings = [[draw.randrange(MAX_ID) for _ in range(PREFIX_TOKENS)] for _ in range(NUM_PREFIXES)]
    prompts = [
        beginnings[number % NUM_PREFIXES] + [draw.randrange(MAX_ID) for _ in range(OWN_TOKENS)]
        for number in range(NUM_PREFIXED)
    ]
    draw.shuffle(prompts)
    return prompts


async def ask_all(port: int) -> None:
    waiting = iter(prefixed())
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=120.0) as client:

        async def work() -> None:
            for prompt in waiting:
                body = {"model": MODEL, "prompt": prompt, "max_tokens": OUT_TOKENS, "ignore_eos": True}
                (await client.post("/v1/completions", json=body)).raise_for_status()

        await asyncio.gather(*(work() for _ in range(PREFIXED_STREAMS)))


def hit_rate(served: Served) -> dict[str, float]:
    before = counts(served.port)
    asyncio.run(ask_all(served.port))
    after = counts(served.port)
    queries, hits = (after[name] - before[name] for name in ("prefix_queries", "prefix_hits"))
    return {"queries": queries, "hits": hits, "rate": round(hits / queries, 4)}


def measure(folder: Path, replicas: int, args: argparse.Namespace, report: Report) -> None:
    flags = ["--replicas", str(replicas), "--max-model-len", "4096", *args.flags.split()]
    log = folder / f"server-{replicas}.log"
    tag = f"{replicas} replicas"
    streams = args.streams * replicas
    try:
        with server(folder, flags, log) as served:
            report.put(f"{tag}, ready_s", round(served.ready_s, 2))
            _level(served, Level(1, streams, streams), 16, 16, seed=1)  # warm
            level = Level(1, streams, args.rounds * streams)
            found = [
                report.attempt(f"{tag}, run {turn}", lambda turn=turn: _level(served, level, 128, 128, 1000 * turn))
                for turn in range(1, args.repeats + 1)
            ]
            report.put(f"{tag}, tok_s", statistics.median([each["tok_s"] for each in found if each] or [0.0]))
            report.put(f"{tag}, prefixes", hit_rate(served))
    finally:
        text = log.read_text(errors="replace")
        print("  the server said:\n" + "".join(f"    {line}\n" for line in text.splitlines()[-20:]), flush=True)


def ratio(report: Report, replicas: int) -> dict[str, Any]:
    one, many = (report.values.get(f"{count} replicas, tok_s") for count in (1, replicas))
    rates = [report.values.get(f"{count} replicas, prefixes", {}).get("rate") for count in (1, replicas)]
    return {
        "tok_s": round(many / one, 3) if one and many else None,
        "hit_rate": round(rates[1] / rates[0], 3) if all(rates) else None,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="tiny")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--streams", type=int, default=64, help="of each engine")
    parser.add_argument("--rounds", type=int, default=4, help="requests of each stream")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--flags", default="", help="more of the server's")
    parser.add_argument("--seconds", type=float, default=420.0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    report = Report(args.out, time.monotonic() + args.seconds)
    report.put("command", " ".join(["python -m benchmarks.replicas", *sys.argv[1:]]))
    report.put("date", time.strftime("%Y-%m-%d %H:%M:%S"))
    report.put("machine", machine())
    with tempfile.TemporaryDirectory() as name:
        folder = model_folder(CONFIGS[args.shape], Path(name) / args.shape)
        for replicas in (1, args.replicas):
            report.attempt(f"{replicas} replicas", lambda replicas=replicas: measure(folder, replicas, args, report))
    report.put("ratio", ratio(report, args.replicas))
    print(json.dumps(report.values))
    return 0


def machine() -> dict[str, Any]:
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"torch": torch.__version__, "gpus": gpus, "cores": os.cpu_count()}


if __name__ == "__main__":
    sys.exit(main())
