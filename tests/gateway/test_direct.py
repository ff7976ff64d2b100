"""Streams over real connections: what goes past the server's layers is what would have gone through them."""

import asyncio
import json
from typing import Any

import httpx
import pytest

from gateway.http import connections
from tests.fixtures.fakes import MODEL, FakeEngine, Script, client_of, events, toy_ready, toy_services
from tests.fixtures.wires import at_rest, connected, rested, serving

PATHS = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"prompt": "hi"},
    "/v1/messages": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 100},
    "/v1/responses": {"input": "hi"},
}


def asked(path: str, version: str = "1.1", **fields: Any) -> bytes:
    body = json.dumps({"model": MODEL, "stream": True, **PATHS[path], **fields}).encode()
    head = f"POST {path} HTTP/{version}\r\nhost: test\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


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


async def test_a_connection_ends_though_its_client_takes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "LAST_BYTES_S", 0.01)
    script = Script([[120] * 10_000] * 60)
    engine = FakeEngine(script=lambda submit, choice: script, automatic=False, ready=toy_ready(max_model_len=1 << 20))
    services = toy_services(engine, send_timeout_s=0.05)
    async with serving(services, send_buffer=4096) as address:
        rest = await at_rest(address)
        async with connected(address, receive_buffer=4096) as client:
            await client.send(asked("/v1/completions", max_tokens=1_000_000))
            await engine.until(lambda: bool(engine.playing))
            while engine.playing:
                engine.step()
                await asyncio.sleep(0)
            await rested(rest)
            assert not (await client.rest()).endswith(b"\r\n0\r\n\r\n")
