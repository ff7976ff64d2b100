"""Server-sent events on the wire: each piece in one send, heart-beats while nothing comes, a bound on every send, an
end with the client.

A stream has a timer that looks at it now and then. sse-starlette, which has tasks for that, puts a cancel scope around
each send; that took a fifth of the gateway's time: docs/log.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import suppress

from starlette.types import Receive, Scope, Send

from gateway.http.direct import Line, line_of
from gateway.http.race import Interrupt

PING = b": ping\n\n"  # a comment: every client must skip it
TICKS = 4  # of the timer in the shortest time that it keeps
HEADERS = {
    "cache-control": "no-cache",
    "content-type": "text/event-stream; charset=utf-8",
    "x-accel-buffering": "no",  # nginx would gather events
}


class SendTimeout(Exception):
    """The client took nothing for so long that its stream was ended."""


class EventResponse:
    """An ASGI application that sends one stream. Whoever calls it watches whether the client leaves.

    Also the Line that it offers to whoever has the events, once the head is sent: what is written there need not wait
    for the turn of a task.
    """

    def __init__(
        self,
        events: AsyncGenerator[bytes],
        headers: Mapping[str, str],
        *,
        ping_s: float,
        send_timeout_s: float,
        offer: Callable[[Line], None] | None = None,
    ) -> None:
        """0: no heart-beats; sends without a bound."""
        self._events = events
        self._offer = offer
        self._line: Line | None = None
        self._headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        self._headers += [(name.encode(), value.encode()) for name, value in HEADERS.items() if name not in headers]
        self._ping_s = ping_s
        self._send_timeout_s = send_timeout_s
        self._sending = asyncio.Lock()
        self._sent_at = 0.0  # when the last send began
        self._timer: asyncio.TimerHandle | None = None
        self._pinging: asyncio.Task[None] | None = None
        self._interrupt = Interrupt()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises SendTimeout, and what the events or a send raise."""
        self._line = line_of(scope)
        self._sent_at = asyncio.get_running_loop().time()
        try:
            with self._interrupt:
                self._look_later(send)
                await self._write(send)
        finally:
            if self._timer is not None:
                self._timer.cancel()
            if self._pinging is not None:
                self._pinging.cancel()
            await self._events.aclose()

    async def _write(self, send: Send) -> None:
        clock, sending = asyncio.get_running_loop().time, self._sending
        async with sending:
            await send({"type": "http.response.start", "status": 200, "headers": self._headers})
        if self._line is not None and self._offer is not None:
            self._offer(self)
        async for data in self._events:
            if self.is_free():
                self.write(data)
                continue
            async with sending:
                self._sent_at = clock()
                await send({"type": "http.response.body", "body": data, "more_body": True})
        async with sending:
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    def is_free(self) -> bool:
        return self._line is not None and not self._sending.locked() and self._line.is_free()

    def write(self, data: bytes) -> None:
        assert self._line is not None
        self._sent_at = asyncio.get_running_loop().time()
        self._line.write(data)

    def _look_later(self, send: Send) -> None:
        limits = [limit for limit in (self._ping_s, self._send_timeout_s) if limit > 0]
        if limits:
            self._timer = asyncio.get_running_loop().call_later(min(limits) / TICKS, self._look, send)

    def _look(self, send: Send) -> None:
        silence_s = asyncio.get_running_loop().time() - self._sent_at
        if self._sending.locked():
            if 0 < self._send_timeout_s <= silence_s:
                return self._interrupt.now(SendTimeout())
        elif 0 < self._ping_s <= silence_s:
            self._pinging = asyncio.create_task(self._ping(send))
        return self._look_later(send)

    async def _ping(self, send: Send) -> None:
        async with self._sending:
            self._sent_at = asyncio.get_running_loop().time()
            with suppress(OSError):  # the client has left: it is watched
                await send({"type": "http.response.body", "body": PING, "more_body": True})
