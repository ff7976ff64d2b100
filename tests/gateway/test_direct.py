"""Streams over real connections: what goes past the server's layers is what would have gone through them."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from gateway.http.app import create_app
from gateway.http.ending import Signals
from gateway.http.lifecycle import Server
from gateway.http.port import bind
from gateway.services import Services
from tests.fixtures.fakes import DEADLINE_S, MODEL, FakeEngine, Script, client_of, events, toy_ready, toy_services

PATHS = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"prompt": "hi"},
    "/v1/messages": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 100},
    "/v1/responses": {"input": "hi"},
}


@asynccontextmanager
async def serving(services: Services, send_buffer: int | None = None) -> AsyncIterator[tuple[str, int]]:
    """send_buffer: bytes that the system keeps for a client that does not read."""
    listener, opened, signals = bind("127.0.0.1", 0), asyncio.Event(), Signals()
    if send_buffer is not None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    address: tuple[str, int] = listener.getsockname()
    server = Server(create_app(services), listener, services.drain, signals, DEADLINE_S, asyncio.Event().wait)  # type: ignore[arg-type]
    task = asyncio.create_task(server.run(opened.set))
    try:
        await asyncio.wait_for(opened.wait(), DEADLINE_S)
        yield address
    finally:
        signals.stop.set()
        signals.hurry.set()
        await asyncio.wait_for(task, DEADLINE_S)


def asked(path: str, version: str = "1.1", **fields: Any) -> bytes:
    body = json.dumps({"model": MODEL, "stream": True, **PATHS[path], **fields}).encode()
    head = f"POST {path} HTTP/{version}\r\nhost: test\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


class Client:
    """Reads when the test says so; what it has read and not used yet waits in `read`."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.read = b""

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.connection, data)

    async def until(self, end: bytes) -> bytes:
        async with asyncio.timeout(DEADLINE_S):
            while end not in self.read:
                more = await asyncio.get_running_loop().sock_recv(self.connection, 1 << 16)
                assert more, self.read
                self.read += more
        before, found, self.read = self.read.partition(end)
        return before + found

    async def rest(self) -> bytes:
        async with asyncio.timeout(DEADLINE_S):
            while more := await asyncio.get_running_loop().sock_recv(self.connection, 1 << 16):
                self.read += more
        return self.read

    def at_hand(self) -> bytes:
        """Without a turn of the event loop. Raises BlockingIOError if nothing has come."""
        return self.connection.recv(1 << 16)


@asynccontextmanager
async def connected(address: tuple[str, int], receive_buffer: int | None = None) -> AsyncIterator[Client]:
    with socket.socket() as connection:
        if receive_buffer is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, address)
        yield Client(connection)


def unchunked(data: bytes) -> bytes:
    """The body of a chunked answer, which must be whole."""
    body = b""
    while True:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        body, end, data = body + data[:length], data[length : length + 2], data[length + 2 :]
        assert end == b"\r\n"
        if length == 0:
            assert data == b""
            return body


def text_of(path: str, body: bytes) -> str:
    found = ""
    for event in events(body):
        choices = [] if event == "[DONE]" else event.get("choices", [])
        if path == "/v1/messages":
            found += event.get("delta", {}).get("text", "")
        elif path == "/v1/responses":
            found += event["delta"] if event["type"] == "response.output_text.delta" else ""
        else:
            found += "".join(each.get("text", "") or each.get("delta", {}).get("content", "") for each in choices)
    return found


@pytest.mark.parametrize("path", PATHS)
async def test_a_token_is_sent_before_anything_else_has_a_turn(path: str) -> None:
    engine = FakeEngine(script=lambda submit, choice: Script.of("Hello"), automatic=False)
    async with serving(toy_services(engine)) as address, connected(address) as client:
        await client.send(asked(path))
        await engine.until(lambda: bool(engine.playing))
        engine.step()
        await client.until(b"H")
        await client.until(b'"}' if path == "/v1/messages" else b"}\n\n\r\n")
        for letter in b"ello":
            for _ in range(3):  # whoever was woken by the first send waits again
                await asyncio.sleep(0)
            engine.step()
            chunk = client.at_hand()
            size, _, data = chunk.partition(b"\r\n")
            assert data[int(size, 16) :] == b"\r\n"
            assert text_of(path, data) == chr(letter)
        engine.step()
        await client.until(b"\r\n0\r\n\r\n")


@pytest.mark.parametrize("path", PATHS)
async def test_a_stream_says_what_it_says_without_a_connection(path: str) -> None:
    async with client_of(toy_services()) as inside:
        body = {"model": MODEL, "stream": True, **PATHS[path]}
        expected = (await inside.post(path, json=body)).content
    async with serving(toy_services()) as address, connected(address) as client:
        for _ in range(3):  # one connection, kept
            await client.send(asked(path))
            head = await client.until(b"\r\n\r\n")
            assert b"transfer-encoding: chunked" in head.lower()
            got = unchunked(await client.until(b"\r\n0\r\n\r\n"))
            assert text_of(path, got) == text_of(path, expected) == "Hello"
            assert events(got)[-1] == events(expected)[-1]


async def test_choices_share_a_send() -> None:
    engine = FakeEngine(script=lambda submit, choice: Script.of("Hello"), automatic=False)
    async with serving(toy_services(engine)) as address, connected(address) as client:
        await client.send(asked("/v1/completions", n=2))
        await engine.until(lambda: len(engine.playing) == 2)
        engine.step()
        await client.until(b"\r\n\r\n")
        await client.until(b"\n\n\r\n")
        engine.step()
        with pytest.raises(BlockingIOError):
            client.at_hand()
        chunk = await client.until(b"\n\n\r\n")
        assert [event["choices"][0]["index"] for event in events(chunk.partition(b"\r\n")[2])] == [0, 1]


async def test_http_1_0_has_no_chunks() -> None:
    async with serving(toy_services()) as address, connected(address) as client:
        await client.send(asked("/v1/completions", version="1.0"))
        head, _, body = (await client.rest()).partition(b"\r\n\r\n")
        assert b"transfer-encoding" not in head.lower()
        assert body.startswith(b"data: ") and body.endswith(b"data: [DONE]\n\n")
        assert text_of("/v1/completions", body) == "Hello"


async def test_http_2_has_frames() -> None:
    body = {"model": MODEL, "stream": True, **PATHS["/v1/completions"]}
    async with serving(toy_services()) as (host, port), httpx.AsyncClient(http1=False, http2=True) as client:
        answer = await client.post(f"http://{host}:{port}/v1/completions", json=body)
    assert answer.http_version == "HTTP/2"
    assert text_of("/v1/completions", answer.content) == "Hello"


async def test_who_reads_late_gets_all_in_order() -> None:
    """More than the buffers on the way can hold, and then the ordinary way of waiting for a client."""
    pieces = [chr(ord("a") + number % 26) * 10_000 for number in range(60)]
    script = Script([list(piece.encode()) for piece in pieces])
    engine = FakeEngine(script=lambda submit, choice: script, automatic=False, ready=toy_ready(max_model_len=1 << 20))
    services = toy_services(engine)
    async with serving(services, send_buffer=4096) as address, connected(address, receive_buffer=4096) as client:
        await client.send(asked("/v1/completions", max_tokens=1_000_000))
        await engine.until(lambda: bool(engine.playing))
        while engine.playing:
            engine.step()
            await asyncio.sleep(0)
        await client.until(b"\r\n\r\n")
        body = unchunked(await client.until(b"\r\n0\r\n\r\n"))
    assert text_of("/v1/completions", body) == "".join(pieces)
    assert events(body)[-1] == "[DONE]"


async def test_who_reads_nothing_is_ended() -> None:
    script = Script([[120] * 10_000] * 60)
    engine = FakeEngine(script=lambda submit, choice: script, automatic=False, ready=toy_ready(max_model_len=1 << 20))
    services = toy_services(engine, slow_reader_bytes=100_000)
    async with serving(services, send_buffer=4096) as address, connected(address, receive_buffer=4096) as client:
        await client.send(asked("/v1/completions", max_tokens=1_000_000))
        await engine.until(lambda: bool(engine.playing))
        for _ in range(59):
            engine.step()
            await asyncio.sleep(0)
        assert engine.aborted
        body = unchunked((await client.until(b"\r\n0\r\n\r\n")).partition(b"\r\n\r\n")[2])
    assert events(body)[-1]["error"]["code"] == "slow_reader"
