"""Hypercorn's connections, but let go of once their client has left, with a direct line for streams, and with the
moments at which bytes came and went.

Hypercorn (0.17, 0.18) goes on waiting for the keep-alive time of a connection that its client has closed, with the
socket open all the while: a burst of short connections would hold one descriptor each for KEEP_ALIVE_S.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import hypercorn.asyncio.run
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.events import Event, RawData
from starlette.types import Scope

from gateway.http.direct import KEY, ChunkedLine
from gateway.http.stamps import StampedSocket

LAST_BYTES_S = 30.0  # for a client to take what is left of an answer when its connection is closed
TIMES = "headrace.times"  # in the state of a connection


@dataclass(frozen=True, slots=True)
class Arrival:
    """What there is to know of a request before it was seen."""

    ago_s: float  # its first bytes came to this machine
    unread_s: float = 0.0  # bytes lay there until the event loop read them
    sending_s: float = 0.0  # the client took for what came in several pieces


class Times:
    """When bytes came and went on one connection, by `time.monotonic`. Its requests are answered one after another."""

    def __init__(self, feed: Callable[[bytes], None], connection: object) -> None:
        """connection: a socket that knows when its bytes came, or any other."""
        self._feed = feed
        self._stamped = connection if isinstance(connection, StampedSocket) else None
        self._first: float | None = None  # of what has come since the last answer began to end
        self._unread_s = 0.0  # of the same
        self._last = self._read = time.monotonic()
        self._written: float | None = None

    def feed_data(self, data: bytes) -> None:
        stamped = self._stamped
        self._last = self._read = time.monotonic()
        if stamped is not None and stamped.came is not None:
            self._last = stamped.came
        if self._first is None and not data.isspace():  # some clients send an empty line after a body
            self._first, self._unread_s = self._last, 0.0
        self._unread_s += self._read - self._last
        self._feed(data)

    def wrote(self, at: float | None) -> None:
        """None: not all of it."""
        self._written = at

    def drained(self) -> None:
        """As much as the client has to have taken before there is more."""
        if self._written is None:
            self._written = time.monotonic()

    def arrival(self, *, interleaved: bool) -> Arrival:
        """Of a request that begins now. interleaved: among the bytes of others, as in HTTP/2. One that was read
        together with the one before it came when its last bytes did, or earlier."""
        if interleaved or self._first is None:
            return Arrival(time.monotonic() - self._last, self._read - self._last)
        seconds = self._read - self._first
        unread_s = min(self._unread_s, seconds)
        return Arrival(time.monotonic() - self._first, unread_s, seconds - unread_s)

    def ending(self) -> None:
        """An answer's last part is about to be written: what comes from now on belongs to the next request."""
        self._first = None

    def idle_s(self) -> float:
        """Since the last bytes went."""
        return 0.0 if self._written is None else time.monotonic() - self._written


def times_of(scope: Scope) -> Times | None:
    """None from servers that know nothing of this."""
    found: Times | None = scope.get("state", {}).get(TIMES)
    return found


class Connection(TCPServer):
    _left = False
    _cut: asyncio.TimerHandle | None = None

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._times = Times(self.reader.feed_data, getattr(self.writer.get_extra_info("socket"), "_sock", None))
        self.reader.feed_data = self._times.feed_data  # type: ignore[method-assign, assignment]
        self._write = self.writer.write
        self.writer.write = self._timed_write  # type: ignore[method-assign, assignment]
        self.state = {**self.state, KEY: ChunkedLine(self.writer.transport), TIMES: self._times}

    def _timed_write(self, data: bytes) -> None:
        if data:
            began = time.monotonic()  # whom the bytes wake may run before we know that they have gone
            self._write(data)
            self._times.wrote(began if self.writer.transport.get_write_buffer_size() == 0 else None)

    async def protocol_send(self, event: Event) -> None:
        await super().protocol_send(event)
        if isinstance(event, RawData):
            self._times.drained()

    async def _read_data(self) -> None:
        """Returns once there is nothing more to read."""
        await super()._read_data()
        self._left = True
        await self.idle_task.stop()

    async def _close(self) -> None:
        """Without a bound it would wait for a client that takes nothing."""
        self._cut_later()
        try:
            await super()._close()
        finally:
            if self._cut is not None:
                self._cut.cancel()

    async def _initiate_server_close(self) -> None:
        self._cut_later()
        await super()._initiate_server_close()

    def _cut_later(self) -> None:
        if self._cut is None:
            self._cut = self.loop.call_later(LAST_BYTES_S, self.writer.transport.abort)

    async def _idle_timeout(self) -> None:
        """Also begun by an answer that is complete only after its client has left."""
        if not self._left:
            await super()._idle_timeout()


def install() -> None:
    """Hypercorn takes no class of connections as an argument."""
    hypercorn.asyncio.run.TCPServer = Connection  # type: ignore[assignment, attr-defined]
