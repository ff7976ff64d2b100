"""Hypercorn's connections, but let go of once their client has left, and with a direct line for streams.

Hypercorn (0.17, 0.18) goes on waiting for the keep-alive time of a connection that its client has closed, with the
socket open all the while: a burst of short connections would hold one descriptor each for KEEP_ALIVE_S.
"""

from __future__ import annotations

from typing import Any

import hypercorn.asyncio.run
from hypercorn.asyncio.tcp_server import TCPServer

from gateway.http.direct import KEY, ChunkedLine


class Connection(TCPServer):
    _left = False

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.state = {**self.state, KEY: ChunkedLine(self.writer.transport)}

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
