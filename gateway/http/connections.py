"""Hypercorn's connections, but let go of once their client has left, with a direct line for streams, and with the
moment at which bytes came.

Hypercorn (0.17, 0.18) goes on waiting for the keep-alive time of a connection that its client has closed, with the
socket open all the while: a burst of short connections would hold one descriptor each for KEEP_ALIVE_S.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import hypercorn.asyncio.run
from hypercorn.asyncio.tcp_server import TCPServer
from starlette.types import Scope

from gateway.http.direct import KEY, ChunkedLine

ARRIVAL = "headrace.arrival"  # in the state of a connection


class Arrival:
    """When its last bytes came: before the request that they made was seen, several turns of the event loop may go."""

    def __init__(self, feed: Callable[[bytes], None]) -> None:
        self._feed = feed
        self.at = time.monotonic()

    def feed_data(self, data: bytes) -> None:
        self.at = time.monotonic()
        self._feed(data)


def arrived(scope: Scope, now: float) -> float:
    """By `time.monotonic`; now, from servers that know nothing of this."""
    arrival: Arrival | None = scope.get("state", {}).get(ARRIVAL)
    return now if arrival is None else min(now, arrival.at)


class Connection(TCPServer):
    _left = False

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        arrival = Arrival(self.reader.feed_data)
        self.reader.feed_data = arrival.feed_data  # type: ignore[method-assign, assignment]
        self.state = {**self.state, KEY: ChunkedLine(self.writer.transport), ARRIVAL: arrival}

    async def _read_data(self) -> None:
        """Returns once there is nothing more to read."""
        await super()._read_data()
        self._left = True
        await self.idle_task.stop()

    async def _idle_timeout(self) -> None:
        """Also begun by an answer that is complete only after its client has left."""
        if not self._left:
            await super()._idle_timeout()


def install() -> None:
    """Hypercorn takes no class of connections as an argument."""
    hypercorn.asyncio.run.TCPServer = Connection  # type: ignore[assignment, attr-defined]
