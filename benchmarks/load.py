"""A closed-loop load generator for OpenAI-compatible servers: so many streams in flight until all requests have ended.

TTFT: request sent to first text. ITL: gaps between reads that carry text. Tokens are counted by the server's own usage.
While the clock runs, the client only notes when bytes came: it shares the cores with the server. A request that is
refused, breaks off or ends short has failed: it is counted, and its tokens are not.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

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
SHOWN_CHARS = 200  # of why a request failed


@dataclass(frozen=True, slots=True)
class Workload:
    """`requests` prompts of about input_len tokens (one common word each), output_len tokens out, greedy."""

    concurrency: int
    requests: int
    input_len: int = 128
    output_len: int = 128
    prefix_len: int = 0  # tokens before those, the same in all prompts; in chats the system message
    chat: bool = False
    schema: bool = False  # answers are held to PEOPLE
    seed: str = ""

    @property
    def path(self) -> str:
        return "/chat/completions" if self.chat else "/completions"

    def bodies(self, model: str) -> Iterator[bytes]:
        rng = random.Random(self.seed)
        prefix = _words(rng, self.prefix_len)
        form = {"type": "json_schema", "json_schema": {"name": "people", "schema": PEOPLE, "strict": True}}
        length = {"response_format": form} if self.schema else {"ignore_eos": True}
        for _ in range(self.requests):
            body = {
                "model": model,
                **self._prompt(prefix, _words(rng, self.input_len)),
                "max_tokens": self.output_len,
                "temperature": 0,
                "stream": True,
                "stream_options": {"include_usage": True},
                **length,
            }
            yield json.dumps(body).encode()

    def _prompt(self, prefix: str, own: str) -> dict[str, Any]:
        if not self.chat:
            return {"prompt": prefix + own}
        system = [{"role": "system", "content": prefix.strip()}] if prefix else []
        return {"messages": [*system, {"role": "user", "content": own.strip()}]}


def _words(rng: random.Random, num: int) -> str:
    return "".join(" " + word for word in rng.choices(WORDS, k=num))


@dataclass(slots=True)
class Answer:
    sent: float
    reads: list[tuple[float, bytes]] = field(default_factory=list)
    status: int = 0
    error: str = ""

    def events(self) -> Iterator[tuple[float, dict[str, Any]]]:
        """(time, decoded event) of every data line but [DONE]."""
        rest = b""
        for at, data in self.reads:
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                if line.startswith(b"data: {"):
                    yield at, json.loads(line[6:])


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one run. Waits are empty where no request was answered."""

    requests: int
    failed: int
    first_failure: str
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    wall_s: float
    client_cpu_s: float
    output_tok_per_s: float
    total_tok_per_s: float
    ttft_ms: dict[str, float]
    itl_ms: dict[str, float]


async def drive(base_url: str, model: str, work: Workload) -> Figures:
    pending, answers = iter([*work.bodies(model)]), list[Answer]()
    timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)
    connector = aiohttp.TCPConnector(limit=0, force_close=True)  # some servers end kept connections without a word
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:

        async def worker() -> None:
            for body in pending:
                answers.append(await ask(session, base_url + work.path, body))

        started, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(worker() for _ in range(work.concurrency)))
        wall, cpu = time.perf_counter() - started, time.process_time() - cpu
    return figures(answers, work.output_len, wall, cpu)


async def ask(session: aiohttp.ClientSession, url: str, body: bytes) -> Answer:
    answer = Answer(time.perf_counter())
    try:
        async with session.post(url, data=body, headers={"content-type": "application/json"}) as response:
            answer.status = response.status
            async for data in response.content.iter_any():
                answer.reads.append((time.perf_counter(), data))
    except (aiohttp.ClientError, OSError) as error:  # TimeoutError is one of OSError's
        answer.error = f"{type(error).__name__}: {error}"[:SHOWN_CHARS]
    return answer


@dataclass(frozen=True, slots=True)
class _Read:
    """What one whole answer told."""

    times: list[float]  # of text
    usage: dict[str, Any]


class _NotWhole(Exception):
    pass


def figures(answers: list[Answer], output_len: int, wall_s: float, client_cpu_s: float) -> Figures:
    """output_len: the tokens of every answer that is whole."""
    failures: list[str] = []
    ttft, itl = list[float](), list[float]()
    prompt_tokens = cached_tokens = output_tokens = 0
    for answer in answers:
        try:
            read = _read(answer, output_len)
        except _NotWhole as error:
            failures.append(str(error))
            continue
        ttft.append(read.times[0] - answer.sent)
        itl += [after - before for before, after in itertools.pairwise(read.times)]
        prompt_tokens += read.usage["prompt_tokens"]
        cached_tokens += (read.usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        output_tokens += output_len
    return Figures(
        len(answers),
        len(failures),
        failures[0] if failures else "",
        prompt_tokens,
        cached_tokens,
        output_tokens,
        round(wall_s, 3),
        round(client_cpu_s, 3),
        round(output_tokens / wall_s, 1),
        round((prompt_tokens + output_tokens) / wall_s, 1),
        quantiles_ms(ttft),
        quantiles_ms(itl),
    )


def _read(answer: Answer, output_len: int) -> _Read:
    if answer.error:
        raise _NotWhole(answer.error)
    if answer.status != 200:
        said = b"".join(data for _, data in answer.reads).decode(errors="replace")
        raise _NotWhole(f"status {answer.status}: {said}"[:SHOWN_CHARS])
    try:
        events = list(answer.events())
    except ValueError as error:
        raise _NotWhole(f"an event that is not JSON: {error}") from None
    usage = next((event["usage"] for _, event in events if event.get("usage")), None)
    times = sorted({at for at, event in events if any(_has_text(choice) for choice in event.get("choices", ()))})
    if usage is None or not times:
        raise _NotWhole(f"no text or no usage; the last event: {events[-1][1] if events else None}"[:SHOWN_CHARS])
    if usage["completion_tokens"] != output_len:
        raise _NotWhole(f"{usage['completion_tokens']} tokens, not {output_len}")
    return _Read(times, usage)


def _has_text(choice: dict[str, Any]) -> bool:
    return bool(choice.get("text") or (choice.get("delta") or {}).get("content"))


def quantiles_ms(seconds: list[float]) -> dict[str, float]:
    """Values that were: of n in order the one with the index floor(q n); empty of nothing."""
    ordered = sorted(seconds)
    return {
        f"p{round(q * 100)}": round(ordered[min(len(ordered) - 1, int(q * len(ordered)))] * 1e3, 2)
        for q in (0.5, 0.9, 0.99)
        if ordered
    }
