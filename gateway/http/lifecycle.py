"""From an open port to a clean end: Hypercorn and the drain. Every wait here has a limit.

Order of the end: new requests are refused and running ones drain (by the app, through Drain); then Hypercorn is told
to stop, which closes idle connections; what still hangs is cancelled. docs/decisions/ says why in this order.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, cast

import hypercorn.asyncio
from hypercorn.config import Config as HypercornConfig
from hypercorn.config import Sockets

from gateway.http import connections
from gateway.http.drain import Drain
from gateway.http.ending import STRAGGLER_S, Signals, within
from gateway.http.port import BACKLOG, listen
from gateway.http.stamps import StampedListener

MAX_HEADER_BYTES = 32 << 10  # of one request, its first line included
KEEP_ALIVE_S = 75.0  # idle, or sending its headers: longer than the pools of usual clients, who then close first
LAST_ERRORS_S = 5.0  # for forced streams to send their error event
CLOSE_S = 2.0  # for Hypercorn to end its connections

log = logging.getLogger("headrace.http")


class StampedConfig(HypercornConfig):
    def create_sockets(self) -> Sockets:
        sockets = super().create_sockets()
        sockets.insecure_sockets[:] = map(StampedListener.of, sockets.insecure_sockets)
        return sockets


def hypercorn_config(listener: socket.socket, beside: socket.socket | None = None) -> HypercornConfig:
    """Hands the listeners over: Hypercorn closes them."""
    config = StampedConfig()
    config.bind = [f"fd://{listener.detach()}"]
    if beside is not None:
        config.bind.append(f"fd://{beside.detach()}")
    config.accesslog = None
    config.errorlog = log.getChild("hypercorn")
    config.errorlog.setLevel(logging.WARNING)  # our own summary says where we listen
    config.include_server_header = False
    config.h11_max_incomplete_size = MAX_HEADER_BYTES
    config.keep_alive_timeout = KEEP_ALIVE_S
    config.keep_alive_max_requests = 1 << 30
    config.backlog = BACKLOG
    config.graceful_timeout = CLOSE_S
    return config


@dataclass(frozen=True, slots=True)
class Server:
    """What runs behind one port."""

    app: Any
    listener: socket.socket
    drain: Drain
    signals: Signals
    drain_timeout_s: float
    watch: Callable[[], Awaitable[None]]  # of the engine's supervisor: ends only with an exception
    beside: socket.socket | None = None  # listens already; the same is served there

    async def run(self, on_open: Callable[[], None]) -> int:
        """Opens the port and serves until a signal. Returns the exit code; raises what ended it otherwise."""
        listen(self.listener)  # not left to Hypercorn: from here on connections wait in the backlog
        on_open()
        release = asyncio.Event()
        http = asyncio.create_task(self._serve(release), name="http")
        watch = asyncio.ensure_future(self.watch())
        stop = asyncio.create_task(self.signals.stop.wait(), name="stop")
        try:
            await asyncio.wait({http, watch, stop}, return_when=asyncio.FIRST_COMPLETED)
            for ended in (http, watch):
                if ended.done():
                    ended.result()
            if not stop.done():
                raise RuntimeError("the HTTP server ended by itself")
            await self._drain()
        finally:
            for task in (watch, stop):
                task.cancel()
            release.set()
            await _end(http, self.signals.hurry)
        return self.signals.exit_code

    async def _serve(self, release: asyncio.Event) -> None:
        connections.install()
        config = hypercorn_config(self.listener, self.beside)
        await hypercorn.asyncio.serve(cast(Any, self.app), config, shutdown_trigger=release.wait)

    async def _drain(self) -> None:
        num_open = self.drain.open_requests
        log.info("stopping: %d requests are open and have %g s to end", num_open, self.drain_timeout_s)
        draining = asyncio.create_task(self.drain.run(self.drain_timeout_s, LAST_ERRORS_S), name="drain")
        await within(self.drain_timeout_s + 2 * LAST_ERRORS_S, draining, self.signals.hurry)
        if not draining.done():
            draining.cancel()
        elif not draining.result():
            log.warning("requests that were still open after %g s have been cut", self.drain_timeout_s)


async def _end(http: asyncio.Task[None], hurry: asyncio.Event) -> None:
    """Hypercorn may await connections without a limit of its own (from Python 3.12 on)."""
    await within(CLOSE_S + STRAGGLER_S, http, hurry)
    http.cancel()
    await asyncio.wait({http}, timeout=STRAGGLER_S)
    if http.done() and not http.cancelled() and http.exception() is not None:
        log.warning("Hypercorn ended with %r", http.exception())
