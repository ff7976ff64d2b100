"""A load generator that costs less than the server: raw sockets under epoll, HTTP read by looking for a few bytes.

Reads one line of JSON, a Load, and connects; prints "ready"; reads the moment to begin on the system's monotonic clock;
then keeps `concurrency` streams of /v1/completions going until all requests are answered, and prints one line of JSON.

TTFT: request sent to the first read with text. ITL: gaps between reads with text, of which one may hold several tokens.
Tokens are the server's own count. Prompts are random token ids, none like another.
"""

from __future__ import annotations

import json
import os
import random
import select
import socket
import sys
import time
from array import array
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

OK = b"HTTP/1.1 200"
END = b"0\r\n\r\n"  # of a chunked body
TEXT, NO_TEXT = b'"text":"', b'"text":""'
COUNT = b'"completion_tokens":'
READ_BYTES = 1 << 18
TAIL_BYTES = 1024  # of an answer: its usage is in there
PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Load:
    port: int
    model: str
    concurrency: int
    requests: int
    num_in: int
    num_out: int
    seed: int
    max_id: int = 10_000
    host: str = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Seen:
    began_at: float  # monotonic
    ended_at: float
    cpu_s: float  # of this process, from the first request to the last answer
    requests: int
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    events: int
    reads: int
    ttft_s: list[float]
    itl_s: list[float]


@dataclass(slots=True)
class _Stream:
    sock: socket.socket
    sent_at: float = 0.0
    last_at: float = 0.0  # of text; 0: none has come
    started: bool = False  # its answer
    tail: bytes = b""


class AnswerFailed(RuntimeError):
    """Figures of such a run mean nothing."""


@dataclass(slots=True)
class Client:
    load: Load
    requests: list[bytes] = field(default_factory=list)
    streams: dict[int, _Stream] = field(default_factory=dict)
    ttft: array[float] = field(default_factory=lambda: array("d"))
    itl: array[float] = field(default_factory=lambda: array("d"))
    usage: dict[str, int] = field(default_factory=lambda: {"prompt": 0, "output": 0, "cached": 0})
    events: int = 0
    reads: int = 0

    def prepare(self) -> None:
        self.requests = [*_requests(self.load)][::-1]
        for _ in range(min(self.load.concurrency, self.load.requests)):
            sock = socket.create_connection((self.load.host, self.load.port))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.streams[sock.fileno()] = _Stream(sock)

    def run(self) -> Seen:
        """Raises AnswerFailed at the first answer that is not whole."""
        poll = select.epoll()
        for fileno in self.streams:
            poll.register(fileno, select.EPOLLIN)
        began, cpu = time.monotonic(), _cpu_s()
        for stream in self.streams.values():
            self._ask(stream)
        num_open = len(self.streams)
        while num_open:
            ready = poll.poll(PATIENCE_S)
            if not ready:
                raise AnswerFailed(f"{num_open} streams have had nothing for {PATIENCE_S:g} s")
            for fileno, _ in ready:
                num_open -= self._read(self.streams[fileno])
        ended = time.monotonic()
        counts = self.usage["prompt"], self.usage["output"], self.usage["cached"]
        told = began, ended, _cpu_s() - cpu, len(self.ttft), *counts, self.events, self.reads
        return Seen(*told, [*self.ttft], [*self.itl])

    def _ask(self, stream: _Stream) -> None:
        stream.last_at, stream.started, stream.tail = 0.0, False, b""
        stream.sent_at = time.monotonic()
        stream.sock.sendall(self.requests.pop())

    def _read(self, stream: _Stream) -> bool:
        """Whether the stream has had its last answer."""
        data = stream.sock.recv(READ_BYTES)
        now = time.monotonic()
        self.reads += 1
        self.events += data.count(b"data: {")
        if data.count(TEXT) > data.count(NO_TEXT):
            if stream.last_at:
                self.itl.append(now - stream.last_at)
            else:
                self.ttft.append(now - stream.sent_at)
            stream.last_at = now
        stream.tail = tail = (stream.tail + data)[-TAIL_BYTES:]
        if not stream.started:
            if not data.startswith(OK):
                raise AnswerFailed(f"not an answer: {data[:600]!r}")
            stream.started = True
        if not data:
            raise AnswerFailed(f"the server hung up after {tail!r}")
        if not tail.endswith(END) or b"data: [DONE]" not in tail:
            return False
        self._count(tail)
        if not self.requests:
            return True
        self._ask(stream)
        return False

    def _count(self, tail: bytes) -> None:
        """What an answer's usage tells."""
        _, found, rest = tail.rpartition(b'"usage":{')
        if not found:
            raise AnswerFailed(f"an answer without usage: {tail!r}")
        usage: dict[str, Any] = json.JSONDecoder().raw_decode("{" + rest.decode())[0]
        if usage["completion_tokens"] != self.load.num_out:
            raise AnswerFailed(f"an answer of {usage['completion_tokens']} tokens, not {self.load.num_out}")
        self.usage["prompt"] += usage["prompt_tokens"]
        self.usage["output"] += usage["completion_tokens"]
        self.usage["cached"] += (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0


def _requests(load: Load) -> Iterator[bytes]:
    rng = random.Random(load.seed)
    for _ in range(load.requests):
        body = {
            "model": load.model,
            "prompt": [rng.randint(0, load.max_id) for _ in range(load.num_in)],
            "max_tokens": load.num_out,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "ignore_eos": True,
        }
        data = json.dumps(body, separators=(",", ":")).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nhost: {load.host}:{load.port}\r\ncontent-type: application/json\r\n"
        yield f"{head}content-length: {len(data)}\r\n\r\n".encode() + data


def _cpu_s() -> float:
    times = os.times()
    return times.user + times.system


def main() -> None:
    client = Client(Load(**json.loads(sys.stdin.readline())))
    client.prepare()
    print("ready", flush=True)
    time.sleep(max(0.0, float(sys.stdin.readline()) - time.monotonic()))
    print(json.dumps(asdict(client.run())), flush=True)


if __name__ == "__main__":
    main()
