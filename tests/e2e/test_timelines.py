"""Timelines of a real server: they sum to what the client saw, and name who or what held a request up."""

import asyncio
import json
import random
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.http.stamps import StampedSocket, ask_for_stamps
from tests.fixtures.server import MODEL, PATIENCE_S, RunningServer, serving

pytestmark = pytest.mark.alone
FAST = ("--dtype", "auto", "--max-model-len", "8192")  # one thread: a core is left for gateway and clients
CASES = 20  # of each kind of delay
TOLERATED = 0.05  # of them may be blamed on something else


@pytest.fixture(scope="module")
def timed(gguf_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with serving(tmp_path_factory.mktemp("timed"), *FAST, module="tests.fixtures.hindered") as running:
        yield running


@dataclass(frozen=True)
class Answer:
    request_id: str
    wall_ms: float  # from the first byte sent to the last that came to this machine


@contextmanager
def connected(server: RunningServer, room: int | None = None) -> Iterator[StampedSocket]:
    """room: bytes that the system takes before they are read."""
    with StampedSocket() as sock:
        ask_for_stamps(sock)
        if room is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
        sock.connect(server.address)
        sock.setblocking(False)
        yield sock


async def ask_on(
    sock: StampedSocket, request_id: str, body: dict[str, Any], may_read: asyncio.Event | None = None
) -> Answer:
    """may_read: nothing is read before."""
    data = json.dumps({"model": MODEL, "ignore_eos": True, "temperature": 0, **body}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    head += f"x-request-id: {request_id}\r\ncontent-length: {len(data)}\r\n\r\n"
    loop, received = asyncio.get_running_loop(), bytearray()
    began = time.monotonic()
    async with asyncio.timeout(PATIENCE_S):
        await loop.sock_sendall(sock, head.encode() + data)
        if may_read is not None:
            await may_read.wait()
        while not received.endswith(b"0\r\n\r\n") and not _is_whole(received):
            received += await loop.sock_recv(sock, 1 << 16)
    assert sock.came is not None
    return Answer(request_id, (sock.came - began) * 1000)


async def ask(server: RunningServer, request_id: str, body: dict[str, Any]) -> Answer:
    with connected(server) as sock:
        return await ask_on(sock, request_id, body)


def _is_whole(received: bytearray) -> bool:
    head, found, body = received.partition(b"\r\n\r\n")
    length = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return bool(found and length) and len(body) >= int(length[0])


def causes(server: RunningServer, request_id: str) -> dict[str, float]:
    told = server.get(f"/v1/requests/{request_id}/timeline").raise_for_status().json()
    return {each["cause"]: each["ms"] for each in told["causes"]}


def blamed(server: RunningServer, request_id: str) -> str:
    """What took longest, but for its own tokens."""
    found = causes(server, request_id)
    found.pop("decode", None)
    return max(found, key=found.__getitem__)


async def test_timelines_of_200_requests_under_load_sum_to_the_time_that_clients_saw(timed: RunningServer) -> None:
    draw = random.Random(6)
    kinds = [(draw.randint(1, 300), draw.randint(1, 48), draw.random() < 0.5) for _ in range(200)]
    answers: list[Answer] = []

    async def work() -> None:
        with connected(timed) as sock:
            while kinds:
                words, tokens, streams = kinds.pop()
                body = {"prompt": "word " * words, "max_tokens": tokens, "stream": streams}
                answers.append(await ask_on(sock, f"sum-{len(kinds)}", body))

    await asyncio.gather(*[work() for _ in range(16)])
    assert len(answers) == 200
    told_ms = [sum(causes(timed, answer.request_id).values()) for answer in answers]
    pairs = [(told, answer.wall_ms) for told, answer in zip(told_ms, answers, strict=True)]
    assert [(told, wall) for told, wall in pairs if abs(told - wall) > max(2.0, wall / 100)] == []


async def test_a_slow_tokenizer_is_blamed(timed: RunningServer) -> None:
    others = [ask(timed, f"beside-{number}", {"prompt": "So", "max_tokens": 200}) for number in range(4)]
    beside = asyncio.gather(*others)
    found = []
    for number in range(CASES):
        await ask(timed, f"slow-{number}", {"prompt": f"[slow 0.3] {number}", "max_tokens": 4})
        found.append(blamed(timed, f"slow-{number}"))
    await beside
    assert found.count("tokenize") >= (1 - TOLERATED) * CASES, found


async def test_a_stalled_reader_is_blamed(timed: RunningServer) -> None:
    """Nothing is read until all is computed, and then twice as long again."""
    num_tokens = 100
    body = {"prompt": "One", "max_tokens": num_tokens, "stream": True, "logprobs": 20}
    names = [f"stalled-{number}" for number in range(CASES)]
    may_read = asyncio.Event()

    async def stall(name: str) -> None:
        with connected(timed, room=4096) as sock:
            await ask_on(sock, name, body, may_read)

    in_all = timed.metrics()["generation_tokens_total"] + CASES * num_tokens
    began = time.perf_counter()
    stalled = asyncio.gather(*map(stall, names))
    await asyncio.to_thread(timed.metrics_when, lambda seen: seen["generation_tokens_total"] >= in_all, "all of it")
    await asyncio.sleep(2 * (time.perf_counter() - began))
    may_read.set()
    await stalled
    found = [blamed(timed, name) for name in names]
    assert found.count("slow_reader") >= (1 - TOLERATED) * CASES, found


async def test_a_neighbour_with_a_long_prompt_is_blamed(timed: RunningServer) -> None:
    found = []
    for number in range(2):
        names = [f"beside-long-{number}-{place}" for place in range(CASES // 2)]
        victims = [
            asyncio.create_task(ask(timed, name, {"prompt": f"{name} tells", "max_tokens": 48, "stream": True}))
            for name in names
        ]
        await asyncio.sleep(0.5)  # they decode
        await ask(timed, f"long-{number}", {"prompt": f"{number} " + "word " * 6000, "max_tokens": 1})
        await asyncio.gather(*victims)
        for name in names:
            spent = causes(timed, name)
            found.append(max(spent, key=spent.__getitem__))
    assert found.count("others_prefill") >= (1 - TOLERATED) * CASES, found


async def test_a_full_cache_is_blamed(gguf_path: Path, tmp_path: Path) -> None:
    """One request holds nearly all of its blocks while others want some."""
    with serving(tmp_path, *FAST, "--kv-cache-memory", "24MiB", "--max-model-len", "1024") as full:
        found = []
        for number in range(CASES // 4):
            hog = asyncio.create_task(ask(full, f"hog-{number}", {"prompt": "word " * 900, "max_tokens": 90}))
            await asyncio.to_thread(full.metrics_when, lambda seen: seen["kv_blocks_used"] > 50, "the hog is in")
            names = [f"kept-out-{number}-{place}" for place in range(4)]
            await asyncio.gather(
                *[ask(full, name, {"prompt": f"{name} " + "other " * 210, "max_tokens": 1}) for name in names]
            )
            await hog
            found += [blamed(full, name) for name in names]
    assert found.count("waiting_blocks") >= (1 - TOLERATED) * CASES, found


def test_the_log_tells_the_same(timed: RunningServer) -> None:
    answer = httpx.post(
        f"{timed.url}/v1/completions",
        json={"model": MODEL, "prompt": "hi", "max_tokens": 4},
        headers={"x-request-id": "logged"},
        timeout=PATIENCE_S,
    )
    assert answer.status_code == 200
    [line] = [line for line in timed.log.splitlines() if '"request_id":"logged"' in line]
    logged = json.loads(line[line.index("{") :])
    assert logged["causes_ms"] == causes(timed, "logged")
