"""A client that costs less than the server: epoll and raw sockets, and of the answers it only counts events.

All its streams are sent at one moment; each connection then asks again until it has had its turns.
"""

from __future__ import annotations

import json
import select
import socket
import time
from array import array
from dataclasses import dataclass, field

HOST = "127.0.0.1"
OK = b"HTTP/1.1 200"
END = b"\r\n0\r\n\r\n"  # of a chunked body
EVENT = b"data: {"
READ_BYTES = 1 << 16
PATIENCE_S = 120.0


@dataclass(frozen=True, slots=True)
class Work:
    """What one client process does."""

    port: int
    path: str
    bodies: list[bytes]  # one a connection
    turns: int
    start_at: float  # time.monotonic(), which all processes share


@dataclass(frozen=True, slots=True)
class Seen:
    ended_at: float
    events: int
    reads: int
    tokens: int  # as the answers' usage tells them
    ttft_s: list[float]  # of the first turn
    itl_s: array[float]  # between reads with events


@dataclass(slots=True)
class _Stream:
    sock: socket.socket
    request: bytes
    turns: int
    first_at: float = 0.0
    last_at: float = 0.0  # of this answer's events; 0: none has come
    rest: bytes = b""  # the last bytes of the answer so far
    tokens: int = field(default=0)


class AnswerFailed(RuntimeError):
    """Figures of such a run mean nothing."""


def drive(work: Work) -> Seen:
    """Raises AnswerFailed at the first answer that is not whole."""
    poll, streams = select.epoll(), {}
    for body in work.bodies:
        sock = socket.create_connection((HOST, work.port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        streams[sock.fileno()] = _Stream(sock, _request(work.path, body), work.turns)
        poll.register(sock, select.EPOLLIN)
    time.sleep(max(0.0, work.start_at - time.monotonic()))
    began = time.monotonic()
    for stream in streams.values():
        stream.sock.sendall(stream.request)
    gaps = array("d")
    events = reads = 0
    num_open = len(streams)
    while num_open:
        ready = poll.poll(PATIENCE_S)
        if not ready:
            raise AnswerFailed(f"{num_open} streams have had nothing for {PATIENCE_S:g} s")
        for fileno, _ in ready:
            stream = streams[fileno]
            data = stream.sock.recv(READ_BYTES)
            reads += 1
            events += data.count(EVENT)
            if EVENT in data:
                now = time.monotonic()
                stream.first_at = stream.first_at or now
                if stream.last_at:
                    gaps.append(now - stream.last_at)
                stream.last_at = now
            num_open -= _take(stream, data)
    ended = time.monotonic()
    for stream in streams.values():
        stream.sock.close()
    firsts = [stream.first_at - began for stream in streams.values()]
    return Seen(ended, events, reads, sum(stream.tokens for stream in streams.values()), firsts, gaps)


def _take(stream: _Stream, data: bytes) -> bool:
    """Whether the stream has had its last answer."""
    stream.rest = (stream.rest + data)[-1024:]
    if not data or not (stream.first_at or stream.rest.startswith(OK)):
        raise AnswerFailed(f"not a stream of events: {stream.rest!r}")
    if not stream.rest.endswith(END):  # which may come by itself
        return False
    usage = stream.rest.rpartition(b'"completion_tokens":')[2]
    if not usage or b"data: [DONE]" not in usage:
        raise AnswerFailed(f"the answer is not whole: {stream.rest!r}")
    stream.tokens += int(usage[: usage.index(b",")])
    stream.rest, stream.last_at = b"", 0.0
    stream.turns -= 1
    if stream.turns:
        stream.sock.sendall(stream.request)
    return not stream.turns


def _request(path: str, body: bytes) -> bytes:
    lines = [f"POST {path} HTTP/1.1", f"host: {HOST}", "content-type: application/json", f"content-length: {len(body)}"]
    lines += ["accept: text/event-stream", "user-agent: lean", "authorization: Bearer none"]
    return "\r\n".join([*lines, "", ""]).encode() + body


def body(model: str, endpoint: str, text: str, max_tokens: int) -> bytes:
    asked = {"prompt": text} if endpoint == "completions" else {"messages": [{"role": "user", "content": text}]}
    options = {"max_tokens": max_tokens, "temperature": 0, "stream": True, "stream_options": {"include_usage": True}}
    return json.dumps({"model": model, **asked, **options, "ignore_eos": True}).encode()
