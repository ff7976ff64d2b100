"""Bytes on a socket: curl, raw HTTP, hostile bodies. What no client library would send or show."""

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import httpx
import pytest

from tests.fixtures.server import MODEL, PATIENCE_S, RunningServer

CHAT = "/v1/chat/completions"
JSON = ("-H", "content-type: application/json")
MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]


def curl(*arguments: str) -> subprocess.Popen[bytes]:
    command = ["curl", "--silent", "--show-error", "--no-buffer", "--max-time", str(int(PATIENCE_S)), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def request(server: RunningServer, **fields: Any) -> tuple[str, ...]:
    body = {"model": MODEL, "messages": MESSAGES, "temperature": 0, **fields}
    return (server.url + CHAT, *JSON, "-d", json.dumps(body))


def events(data: bytes) -> list[str]:
    return [part.removeprefix("data: ") for part in data.decode().split("\n\n") if part]


def test_curl_sees_a_whole_stream(server: RunningServer) -> None:
    with curl(*request(server, stream=True)) as process:
        data, _ = process.communicate(timeout=PATIENCE_S)
    *chunks, done = events(data)
    assert done == "[DONE]"
    text = "".join(json.loads(chunk)["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == "The capital of France is Paris."


def test_curl_sees_tokens_while_later_ones_are_computed(server: RunningServer) -> None:
    """An answer that would take minutes: whatever is read of it was sent long before its end."""
    before = server.metrics_when_idle()["generation_tokens_total"]
    with curl(*request(server, stream=True, max_tokens=1900, ignore_eos=True)) as process:
        assert process.stdout is not None
        reads = [os.read(process.stdout.fileno(), 1 << 16) for _ in range(8)]
        meanwhile = server.metrics()
        process.kill()
    assert meanwhile["streams_open"] == 1
    assert all(b"data: " in read and b"[DONE]" not in read for read in reads)
    assert meanwhile["generation_tokens_total"] - before < 1900
    server.metrics_when_idle()


@contextmanager
def connection(server: RunningServer) -> Iterator[socket.socket]:
    with socket.create_connection(server.address, timeout=PATIENCE_S) as opened:
        yield opened


IDLE = b'"available_workers":1}'  # the end of what /health says


def raw_post(path: str, body: bytes, headers: str = "") -> bytes:
    lines = f"POST {path} HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return f"{lines}{headers}\r\n".encode() + body


def read_until(opened: socket.socket, end: bytes) -> bytes:
    data = b""
    while end not in data:
        received = opened.recv(1 << 16)
        assert received, f"the server closed the connection after {data!r}"
        data += received
    return data


def test_pipelined_requests_are_answered_in_order(server: RunningServer) -> None:
    body = json.dumps({"model": MODEL, "messages": MESSAGES, "max_tokens": 2, "temperature": 0}).encode()
    streamed = json.dumps({**json.loads(body), "stream": True}).encode()
    health = b"GET /health HTTP/1.1\r\nHost: test\r\n\r\n"
    with connection(server) as opened:
        opened.sendall(raw_post(CHAT, body) + raw_post(CHAT, streamed) + health)
        data = read_until(opened, IDLE)
    answers = data.split(b"HTTP/1.1 ")[1:]
    assert [answer[:3] for answer in answers] == [b"200"] * 3
    assert b'"chat.completion"' in answers[0] and b"data: [DONE]" in answers[1]


@pytest.mark.parametrize("before", [b"", b"GET /health HTTP/1.1\r\nHost: test\r\n\r\n"], ids=["silent", "served"])
def test_a_connection_is_closed_when_its_client_does(server: RunningServer, before: bytes) -> None:
    with connection(server) as opened:
        opened.sendall(before)
        if before:
            read_until(opened, IDLE)
        opened.shutdown(socket.SHUT_WR)
        opened.settimeout(30)  # well under the time that an idle connection is kept for
        assert opened.recv(1) == b""


def test_three_hundred_connections_at_once(server: RunningServer) -> None:
    with ExitStack() as stack:
        opened = [stack.enter_context(connection(server)) for _ in range(300)]
        for each in opened:
            each.sendall(b"GET /v1/models HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
        for each in opened:
            assert MODEL.encode() in read_until(each, b'"object":"list"}')


BODIES: dict[str, tuple[bytes, int]] = {
    "nothing": (b"", 400),
    "half": (b'{"model":', 400),
    "an array": (b"[]", 400),
    "not UTF-8": (b'{"model":"' + MODEL.encode() + b'","messages":[{"role":"user","content":"\xff\xfe"}]}', 400),
    "half a surrogate": (b'{"model":"m","messages":[{"role":"user","content":"\\ud800"}]}', 400),
    "deep": (b'{"model":"m","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400),
    "not a number": (b'{"model":"m","messages":[],"temperature":NaN}', 400),
    "infinite": (b'{"model":"m","messages":[],"seed":1e400}', 400),
    "too large": (b" " * (17 << 20), 413),
}


@pytest.mark.parametrize(("body", "status"), BODIES.values(), ids=BODIES)
def test_a_hostile_body(server: RunningServer, body: bytes, status: int) -> None:
    answer = httpx.post(server.url + CHAT, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("HEAD", "/v1/models", 200),
        ("HEAD", CHAT, 405),
        ("OPTIONS", CHAT, 405),
        ("GET", CHAT, 405),
        ("DELETE", "/v1/models", 405),
        ("GET", "/nothing", 404),
        ("GET", "/v1/chat/completions/", 404),
        ("GET", "/v1/models/%2e%2e%2f%0d%0aset-cookie:%20x", 404),
        ("POST", CHAT, 415),
    ],
)
def test_a_wrong_door(server: RunningServer, method: str, path: str, status: int) -> None:
    answer = httpx.request(method, server.url + path, content=b"{}" if method == "POST" else None)
    assert answer.status_code == status
    assert "set-cookie" not in answer.headers
    if method != "HEAD" and status != 200:
        assert answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\r\n\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: test\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: test\r\nContent-Length: -5\r\n\r\n",
    ],
    ids=["TLS", "no host", "long header", "negative length"],
)
def test_what_is_not_http_is_refused_and_closed(server: RunningServer, garbage: bytes) -> None:
    with connection(server) as opened:
        opened.sendall(garbage)
        answer = read_until(opened, b"\r\n\r\n")
        assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 431"))
        with suppress(ConnectionResetError):  # it had not read all that was sent
            assert opened.recv(1) == b""
    assert server.get("/health").status_code == 200
