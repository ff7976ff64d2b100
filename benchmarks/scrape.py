"""What a scrape of /metrics costs, and how many series it has, as a server grows old.

    python -m benchmarks.scrape [--requests 1000,10000]

A server with the default model answers requests of all kinds that clients send (streams and not, chats and completions,
several choices, refused ones, those of several users); after so many of them in all, the page is read several times.
Series must not grow in number: the first of the counts is taken when every kind has come. One last line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import sys
import time
from typing import Any

import aiohttp

from benchmarks.cpu_machine import commit, machine
from benchmarks.cpu_servers import MODEL, ROOT, ours, running

STREAMS = 32
SCRAPES = 20
AT_MOST_MS = 50.0
TIMEOUT = aiohttp.ClientTimeout(total=120)
WORDS = ("time", "year", "people", "way", "day", "man", "thing", "woman")

# (path, fields, status); each asks for one token or two, so that many are answered in minutes.
KINDS: tuple[tuple[str, dict[str, Any], int], ...] = (
    ("/completions", {"max_tokens": 1}, 200),
    ("/completions", {"max_tokens": 2, "stream": True}, 200),
    ("/completions", {"max_tokens": 1, "n": 2, "temperature": 1.0}, 200),
    ("/chat/completions", {"max_tokens": 1}, 200),
    ("/chat/completions", {"max_tokens": 2, "stream": True, "stream_options": {"include_usage": True}}, 200),
    ("/completions", {"max_tokens": 1, "temperature": -1}, 400),
    ("/completions", {"max_tokens": 1, "model": "nobody"}, 404),
)


def request(number: int) -> tuple[str, dict[str, Any], int]:
    """No two prompts are the same, nor are two users until they have all come."""
    path, fields, status = KINDS[number % len(KINDS)]
    text = f"{number} {WORDS[number % len(WORDS)]}"
    body: dict[str, Any] = {"model": MODEL, "user": f"user-{number}", **fields}
    body |= {"messages": [{"role": "user", "content": text}]} if path.startswith("/chat") else {"prompt": text}
    return path, body, status


async def ask(session: aiohttp.ClientSession, base_url: str, numbers: range) -> None:
    """Raises RuntimeError at the first answer that is another than it should be."""
    left = iter(numbers)

    async def worker() -> None:
        for number in left:
            path, body, status = request(number)
            async with session.post(base_url + path, json=body, headers={"x-request-id": f"scrape-{number}"}) as answer:
                said = await answer.read()
                if answer.status != status:
                    raise RuntimeError(f"request {number}: {answer.status}, not {status}: {said[:200]!r}")

    await asyncio.gather(*(worker() for _ in range(STREAMS)))


async def scrape(session: aiohttp.ClientSession, url: str, accept: str) -> tuple[float, bytes]:
    """(ms, the page)"""
    began = time.perf_counter()
    async with session.get(url, headers={"accept": accept}) as answer:
        page = await answer.read()
        answer.raise_for_status()
    return (time.perf_counter() - began) * 1e3, page


def series(page: bytes) -> set[bytes]:
    """Names with labels, without values and exemplars."""
    lines = (line.partition(b" # ")[0] for line in page.splitlines() if line and not line.startswith(b"#"))
    return {line[: line.rindex(b"}") + 1] if b"}" in line else line.partition(b" ")[0] for line in lines}


ACCEPT = {"text": "text/plain", "openmetrics": "application/openmetrics-text; version=1.0.0"}


async def measure(base_url: str, marks: list[int]) -> list[dict[str, Any]]:
    url, rows = base_url.removesuffix("/v1") + "/metrics", []
    known: dict[str, set[bytes]] = {}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=TIMEOUT, connector=connector) as session:
        for begin, end in itertools.pairwise([0, *marks]):
            await ask(session, base_url, range(begin, end))
            for form, accept in ACCEPT.items():
                got = [await scrape(session, url, accept) for _ in range(SCRAPES)]
                took = [ms for ms, _ in got]
                page = got[-1][1]
                there = series(page)
                row = {"requests": end, "form": form, "series": len(there), "bytes": len(page)}
                row["new"] = sorted(name.decode() for name in there - known.get(form, there))
                known[form] = there
                row |= {"p50_ms": round(statistics.median(took), 1), "longest_ms": round(max(took), 1)}
                rows.append(row)
                print("  ".join(f"{name} {told}" for name, told in row.items()), flush=True)
    return rows


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--requests", type=numbers, default=[1000, 10_000], metavar="N,N", help="in all, in rising order"
    )
    args = parser.parse_args()
    about = {"benchmark": "scrape", "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "machine": machine()}
    marks = ",".join(map(str, args.requests))
    about |= {"command": f"python -m benchmarks.scrape --requests {marks}", "commit": commit(ROOT)}
    with running(ours([])) as up:
        rows = asyncio.run(measure(up.base_url, args.requests))
    longest = max(row["longest_ms"] for row in rows if row["requests"] == args.requests[-1])
    print(f"longest scrape after {args.requests[-1]:,} requests: {longest} ms; needed: under {AT_MOST_MS:g}")
    print(json.dumps({**about, "rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
