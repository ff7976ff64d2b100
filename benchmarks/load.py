"""A closed-loop load generator for OpenAI-compatible completions: so many streams in flight until all have ended.

TTFT: request sent to first text. ITL: gaps between reads that carry text. Tokens are counted by the server's own usage.
While the clock runs, the client only notes when bytes came: it shares the cores with the server.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import aiohttp

# A list that no answer comes to the end of, so that answers are as long as without a schema.
PEOPLE = {
    "type": "array",
    "minItems": 500,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 20},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "born": {"type": "string", "format": "date"},
            "email": {"anyOf": [{"type": "string", "pattern": "^[a-z]{1,10}@[a-z]{1,10}[.]com$"}, {"type": "null"}]},
            "roles": {"type": "array", "items": {"enum": ["reader", "writer", "owner"]}, "maxItems": 3},
        },
        "required": ["name", "age", "born", "email", "roles"],
        "additionalProperties": False,
    },
}
WORDS = ["time", "year", "people", "way", "day", "man", "thing", "woman", "life", "world", "school", "state", "family"]
REQUEST_TIMEOUT_S = 600


@dataclass(frozen=True, slots=True)
class Workload:
    """`requests` prompts of about input_len tokens (one common word each), output_len tokens out, greedy."""

    concurrency: int
    requests: int
    input_len: int = 128
    output_len: int = 128
    seed: int = 0
    schema: bool = False  # answers are held to PEOPLE

    def bodies(self, model: str) -> Iterator[bytes]:
        rng = random.Random(self.seed)
        form = {"type": "json_schema", "json_schema": {"name": "people", "schema": PEOPLE, "strict": True}}
        length = {"response_format": form} if self.schema else {"ignore_eos": True}
        for _ in range(self.requests):
            body = {
                "model": model,
                "prompt": " " + " ".join(rng.choices(WORDS, k=self.input_len)),
                "max_tokens": self.output_len,
                "temperature": 0,
                "stream": True,
                "stream_options": {"include_usage": True},
                **length,
            }
            yield json.dumps(body).encode()


@dataclass(slots=True)
class Answer:
    sent: float
    reads: list[tuple[float, bytes]] = field(default_factory=list)
    status: int = 0

    def events(self) -> Iterator[tuple[float, dict]]:
        """(time, decoded event) of every data line but [DONE]."""
        rest = b""
        for at, data in self.reads:
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                if line.startswith(b"data: {"):
                    yield at, json.loads(line[6:])


@dataclass(frozen=True, slots=True)
class Figures:
    output_tokens: int
    wall_s: float
    output_tok_per_s: float
    ttft_ms: dict[str, float]
    itl_ms: dict[str, float]


class LoadFailed(RuntimeError):
    """A request was not answered in full: figures of such a run mean nothing."""


async def drive(base_url: str, model: str, work: Workload) -> Figures:
    """Runs the workload. Raises LoadFailed at the first answer that is not whole."""
    pending, answers = work.bodies(model), []
    timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)
    connector = aiohttp.TCPConnector(limit=0, force_close=True)  # some servers end kept connections without a word
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:

        async def worker() -> None:
            for body in pending:
                answers.append(await ask(session, f"{base_url}/completions", body))

        started = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(work.concurrency)))
        wall = time.perf_counter() - started
    return figures(answers, work, wall)


async def ask(session: aiohttp.ClientSession, url: str, body: bytes) -> Answer:
    answer = Answer(time.perf_counter())
    async with session.post(url, data=body, headers={"content-type": "application/json"}) as response:
        answer.status = response.status
        async for data in response.content.iter_any():
            answer.reads.append((time.perf_counter(), data))
    return answer


def figures(answers: list[Answer], work: Workload, wall_s: float) -> Figures:
    ttft, itl, tokens = [], [], 0
    for answer in answers:
        events = list(answer.events())
        usage = next((event["usage"] for _, event in events if event.get("usage")), None)
        if answer.status != 200 or usage is None or usage["completion_tokens"] != work.output_len:
            raise LoadFailed(f"status {answer.status}: {answer.reads[-1][1][-300:] if answer.reads else b''!r}")
        times = sorted({at for at, event in events if any(choice.get("text") for choice in event["choices"])})
        ttft.append(times[0] - answer.sent)
        itl += [after - before for before, after in itertools.pairwise(times)]
        tokens += usage["completion_tokens"]
    return Figures(tokens, round(wall_s, 3), round(tokens / wall_s, 1), quantiles_ms(ttft), quantiles_ms(itl))


def quantiles_ms(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {
        f"p{round(q * 100)}": round(ordered[min(len(ordered) - 1, int(q * len(ordered)))] * 1e3, 2)
        for q in (0.5, 0.9, 0.99)
    }
