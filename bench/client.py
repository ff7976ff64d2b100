"""Asks one server over HTTP/1.1, and notes when which bytes came. It reads no answer: client and server often share the
cores, so that waits until the clock has stopped."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import time
import urllib.parse
from array import array
from dataclasses import dataclass, field
from importlib import metadata

from bench.http1 import Broken, Reader

MAX_ANSWER = 64 << 20


@dataclass(slots=True)
class Answer:
    """What came for one request. Times are of time.perf_counter."""

    output_len: int = 0  # tokens that were asked for
    sent_s: float = 0.0
    ended_s: float = 0.0
    late_s: float = 0.0  # sent so long after its moment
    status: int = 0
    failure: str = ""  # why the whole of it did not come
    body: bytearray = field(default_factory=bytearray)
    read_times: array[float] = field(default_factory=lambda: array("d"))
    read_ends: array[int] = field(default_factory=lambda: array("q"))  # in body, of what came at that time

    def note(self, at_s: float, data: bytes) -> None:
        """Raises Broken where it gets too long."""
        self.body += data
        self.read_times.append(at_s)
        self.read_ends.append(len(self.body))
        if len(self.body) > MAX_ANSWER:
            raise Broken(f"an answer of more than {MAX_ANSWER >> 20} MiB")


NAMES = {
    errno.ECONNREFUSED: "connection refused",
    errno.ECONNRESET: "connection reset",
    errno.EPIPE: "connection reset",
    errno.ETIMEDOUT: "connection timed out",
    errno.EHOSTUNREACH: "no route to the host",
    errno.ENETUNREACH: "no route to the host",
    errno.EMFILE: "too many open files in the client",
    errno.EADDRNOTAVAIL: "no free port in the client",
}


class _Stale(Exception):
    """A connection that was kept ended before anything came: the server had let go of it."""


class _Connection(asyncio.Protocol):
    """Carries one exchange after the other."""

    def __init__(self) -> None:
        self.is_open = False
        self._transport: asyncio.Transport | None = None
        self._reader = Reader()
        self._answer: Answer | None = None  # of the exchange that is under way
        self._ended: asyncio.Future[None] | None = None
        self._is_fresh = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport, self.is_open = transport, True

    async def exchange(self, request: bytes, answer: Answer) -> None:
        """Raises Broken, OSError or _Stale."""
        assert self._transport is not None
        self._reader, self._answer = Reader(), answer
        self._ended = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            await self._ended
        finally:
            answer.status = self._reader.status
            self._answer = self._ended = None
            if not (self._reader.ended and self._reader.reusable):
                self.abort()
        self._is_fresh = False

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        if self._answer is None:  # nobody asked
            self.abort()
            return
        try:
            body = self._reader.feed(data)
            if body:
                self._answer.note(now, body)
        except Broken as error:
            self._end(error)
        if self._reader.ended:
            self._end(None)

    def connection_lost(self, error: Exception | None) -> None:
        self.is_open = False
        if not self._is_fresh and not self._reader.status:
            self._end(_Stale())
            return
        try:
            self._reader.close()
        except Broken as broken:
            self._end(error or broken)
        else:
            self._end(None)

    def _end(self, error: Exception | None) -> None:
        if self._ended is None or self._ended.done():
            return
        if error:
            self._ended.set_exception(error)
        else:
            self._ended.set_result(None)

    def abort(self) -> None:
        self.is_open = False
        if self._transport:
            self._transport.abort()


class Client:
    """Of one server. `keep_alive`: a connection is kept for the next request, as the usual clients do."""

    def __init__(self, url: str, api_key: str, timeout_s: float, keep_alive: bool = True) -> None:
        parts = urllib.parse.urlsplit(url)
        is_tls = parts.scheme == "https"
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if is_tls else 80)
        self._timeout_s = timeout_s
        self._headers = f"host: {parts.netloc}\r\nuser-agent: headrace-bench/{metadata.version('headrace')}\r\n"
        self._headers += f"authorization: Bearer {api_key}\r\n" if api_key else ""
        self._headers += "" if keep_alive else "connection: close\r\n"
        self._keep_alive = keep_alive
        self._tls = ssl.create_default_context() if is_tls else None
        self._address = ""  # where the last connection was made
        self._idle = list[_Connection]()

    async def ask(self, method: str, path: str, body: bytes = b"", output_len: int = 0) -> Answer:
        """Within the timeout, in any case: why there is no answer is told in it."""
        head = f"{method} {path} HTTP/1.1\r\n{self._headers}content-type: application/json\r\n"
        request = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
        answer = Answer(output_len, time.perf_counter())
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._exchange(request, answer)
        except (Broken, OSError) as error:  # TimeoutError is one of OSError's
            answer.failure = self._named(error)
        answer.ended_s = time.perf_counter()
        return answer

    def close(self) -> None:
        for connection in self._idle:
            connection.abort()
        self._idle.clear()

    async def _exchange(self, request: bytes, answer: Answer) -> None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                try:
                    return await self._on(connection, request, answer)
                except _Stale:
                    continue
        return await self._on(await self._connect(), request, answer)

    async def _on(self, connection: _Connection, request: bytes, answer: Answer) -> None:
        await connection.exchange(request, answer)
        if connection.is_open and self._keep_alive:
            self._idle.append(connection)
        else:
            connection.abort()

    async def _connect(self) -> _Connection:
        """To the first of the host's addresses that takes it, and from then on to that one."""
        if self._address:
            return await self._connect_to(self._address)
        found = await asyncio.get_running_loop().getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        failure: OSError | None = None
        for *_, address in found:
            try:
                connection = await self._connect_to(str(address[0]))
            except OSError as error:
                failure = error
            else:
                self._address = str(address[0])
                return connection
        raise failure or OSError(f"{self._host} has no address")

    async def _connect_to(self, address: str) -> _Connection:
        loop, name = asyncio.get_running_loop(), self._host if self._tls else None
        made = await loop.create_connection(_Connection, address, self._port, ssl=self._tls, server_hostname=name)
        return made[1]

    def _named(self, error: Broken | OSError) -> str:
        if isinstance(error, ssl.SSLError):
            return f"TLS: {getattr(error, 'verify_message', '') or error.reason or error}"
        if isinstance(error, socket.gaierror):
            return f"host not found: {error.strerror}"
        if isinstance(error, OSError) and error.errno in NAMES:
            return NAMES[error.errno]
        if isinstance(error, TimeoutError):
            return f"timeout after {self._timeout_s:g} s"
        return str(error) or type(error).__name__
