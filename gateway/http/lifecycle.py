"""From an open port to a clean end: Hypercorn, signals, draining. Every wait here has a limit.

Order of the end: new requests are refused and running ones drain (by the app, through Drain); then Hypercorn is told
to stop, which closes idle connections; what still hangs is cancelled. docs/decisions/ says why in this order.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, cast

import hypercorn.asyncio
from hypercorn.config import Config as HypercornConfig

from gateway.http import connections
from gateway.http.drain import Drain

MAX_HEADER_BYTES = 32 << 10  # of one request, its first line included
KEEP_ALIVE_S = 75.0  # idle, or sending its headers: longer than the pools of usual clients, who then close first
BACKLOG = 1024
LAST_ERRORS_S = 5.0  # for forced streams to send their error event
CLOSE_S = 2.0  # for Hypercorn to end its connections
STRAGGLER_S = 0.5
STRAGGLER_ROUNDS = 4

log = logging.getLogger("headrace.http")


class BindError(Exception):
    """The port cannot be had. One line that names host and port."""


class Signals:
    """SIGTERM and SIGINT as events: the first asks for a drain, the second for an end at once."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.hurry = asyncio.Event()
        self.last: signal.Signals | None = None

    def install(self) -> None:
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self.receive, signum)

    def receive(self, signum: signal.Signals) -> None:
        self.last = signum
        if self.stop.is_set():
            self.hurry.set()
            for each in (signal.SIGTERM, signal.SIGINT):  # and a third ends even a loop that no longer turns
                asyncio.get_running_loop().remove_signal_handler(each)
                signal.signal(each, signal.SIG_DFL)
        self.stop.set()

    @property
    def exit_code(self) -> int:
        """0 after a drain; as a shell reports a signal, where it was cut short."""
        return 128 + self.last if self.last is not None and self.hurry.is_set() else 0


def bind(host: str, port: int) -> socket.socket:
    """Takes the port without listening: nobody else can have it, and nobody is accepted before we are ready."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise BindError(f"cannot listen on {shown(host, port)}: {error.strerror}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted connections inherit it
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise BindError(f"cannot listen on {shown(host, port)}: {error.strerror}") from error
    return listener


def _listen(listener: socket.socket) -> None:
    try:
        listener.listen(BACKLOG)
    except OSError as error:  # another process, starting at the same time, was faster
        host, port = listener.getsockname()[:2]
        raise BindError(f"cannot listen on {shown(host, port)}: {error.strerror}") from error


def shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def hypercorn_config(listener: socket.socket) -> HypercornConfig:
    """Hands the listener over: Hypercorn closes it."""
    config = HypercornConfig()
    config.bind = [f"fd://{listener.detach()}"]
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

    async def run(self, on_open: Callable[[], None]) -> int:
        """Opens the port and serves until a signal. Returns the exit code; raises what ended it otherwise."""
        _listen(self.listener)  # not left to Hypercorn: from here on connections wait in the backlog
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
        config = hypercorn_config(self.listener)
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


async def within(seconds: float, task: asyncio.Task[Any], hurry: asyncio.Event) -> None:
    """Waits for the task, for so long, or until there is no time for it any more."""
    hurried = asyncio.create_task(hurry.wait())
    await asyncio.wait({task, hurried}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    hurried.cancel()


async def _end(http: asyncio.Task[None], hurry: asyncio.Event) -> None:
    """Hypercorn may await connections without a limit of its own (from Python 3.12 on)."""
    await within(CLOSE_S + STRAGGLER_S, http, hurry)
    http.cancel()
    await asyncio.wait({http}, timeout=STRAGGLER_S)
    if http.done() and not http.cancelled() and http.exception() is not None:
        log.warning("Hypercorn ended with %r", http.exception())


async def end_stragglers() -> None:
    """The last thing of a process: cancels connections that hang. Several times, because one whose client reads
    nothing waits again in its own clean-up, and asyncio.run() would wait for it for ever."""
    for _ in range(STRAGGLER_ROUNDS):
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        if not tasks:
            return
        for task in tasks:
            task.cancel()
        done, _ = await asyncio.wait(tasks, timeout=STRAGGLER_S)
        for task in done:
            if not task.cancelled() and task.exception() is not None:
                log.debug("%s ended with %r", task.get_name(), task.exception())
