"""Keeps one engine running: starts it, hands its connection to the client, restarts it when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from gateway.engines.handles import EngineHandle, EngineLauncher
from gateway.engines.process import EngineProcess
from gateway.engines.socket import EngineFailed, EngineObserver, Listener, SocketEngine
from gateway.siblings.messages import engine_socket
from scheduler.protocol import EngineConfig, Progress, Ready

ENGINE_COMMAND: tuple[str, ...] = (sys.executable, "-P", "-m", "engine")  # -P: nothing of the current folder
MAX_SOCKET_PATH = 100  # macOS allows 104 bytes, its temporary folders are long
CLOSE_S = 15.0

log = logging.getLogger("headrace.supervisor")


@dataclass(frozen=True, slots=True)
class Backoff:
    first_s: float = 0.5
    limit_s: float = 30.0
    healthy_s: float = 60.0  # an engine that ran so long starts the series anew


@dataclass(frozen=True, slots=True)
class Timing:
    """The runtime, as tests replace it."""

    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep


@dataclass(frozen=True, slots=True)
class EngineSetup:
    """A launcher of processes on this machine. `config.socket_path` is chosen by the supervisor."""

    config: EngineConfig
    environ: Mapping[str, str]
    command: Sequence[str] = ENGINE_COMMAND

    async def start(self, socket: Path) -> EngineHandle:
        config = msgspec.structs.replace(self.config, socket_path=str(socket))
        return await EngineProcess.start(self.command, config, self.environ)


class Supervisor:
    def __init__(
        self,
        launcher: EngineLauncher,
        engine: SocketEngine,
        observer: EngineObserver,
        folder: Path,
        *,
        number: int = 0,
        backoff: Backoff = Backoff(),
        timing: Timing = Timing(),
        on_death: Callable[[bool], None] = lambda from_outside: None,
    ) -> None:
        """folder: a socket_folder(). number: which of several engines. on_death: told of each engine's, and whether
        somebody else had killed it."""
        self._launcher = launcher
        self._engine = engine
        self._observer = observer
        self._backoff = backoff
        self._timing = timing
        self._on_death = on_death
        self._folder = folder
        self._number = number
        self._num_starts = 0
        self._process: EngineHandle | None = None
        self._ready_at: float | None = None  # of the engine that runs or ran last
        self._first: asyncio.Future[Ready] | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self, on_progress: Callable[[Progress], None]) -> Ready:
        """The first start. Raises EngineFailed if it does not succeed: then there is nothing to keep running."""
        self._first = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._keep_running(on_progress), name="supervisor")
        either: set[asyncio.Future[Any]] = {self._first, self._task}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not self._first.done():
            await self._task
        return self._first.result()

    async def watch(self) -> None:
        """Returns only by an exception: a fault of the supervisor itself, never an engine's."""
        assert self._task, "watched before started"
        await asyncio.shield(self._task)

    async def close(self) -> None:
        """Stops the engine, in bounded time. Safe to call again, and before start()."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=CLOSE_S)
            if self._task.done() and not self._task.cancelled() and self._task.exception():
                log.debug("the supervisor had ended: %s", self._task.exception())
        self.kill()

    def kill(self) -> None:
        """At once."""
        if self._process is not None:
            self._process.kill()

    async def _keep_running(self, on_progress: Callable[[Progress], None]) -> None:
        delay_s = self._backoff.first_s
        while True:
            self._ready_at = None
            try:
                await self._live(on_progress)
            except EngineFailed as failure:
                if not self._has_been_ready():
                    raise
                log.error("%s", failure.message)
            if self._ready_at is not None and self._timing.clock() - self._ready_at >= self._backoff.healthy_s:
                delay_s = self._backoff.first_s
            log.warning("starting the engine again in %g s", delay_s)
            self._engine.retry_after_s = max(1.0, delay_s)
            await self._timing.sleep(delay_s)
            delay_s = min(2 * delay_s, self._backoff.limit_s)
            self._observer.engine_restarted()

    def _has_been_ready(self) -> bool:
        return self._first is not None and self._first.done()

    async def _live(self, on_progress: Callable[[Progress], None]) -> None:
        """One engine, from its start to its end. Always raises."""
        self._num_starts += 1
        process = await self._launcher.start(self._folder / f"engine-{self._number}-{self._num_starts}.sock")
        self._process = process
        try:
            reader, writer = await process.connect()
            process.lead_to(self._folder / engine_socket(self._number))  # once we are its first connection
            listener = Listener(_unseen if self._has_been_ready() else on_progress, self._note_ready)
            await self._engine.converse(reader, writer, listener)
        except EngineFailed as failure:
            if failure.kind == "hung":
                process.kill()  # asked to stop, it would not hear
            if failure.kind != "lost":
                raise
            raise EngineFailed("lost", await process.last_words() or failure.message) from failure
        finally:
            self._explain(process)
            await process.stop()
            self._process = None

    def _explain(self, process: EngineHandle) -> None:
        death = self._engine.death
        if death is not None and not death.explained.is_set():
            death.from_outside = process.was_killed
            death.explained.set()
            self._on_death(death.from_outside)

    def _note_ready(self, ready: Ready) -> None:
        self._ready_at = self._timing.clock()
        if self._first is None or self._first.done():
            log.info("the engine is ready again")
        else:
            self._first.set_result(ready)


def _unseen(progress: Progress) -> None:
    """Restarts show no bars."""


def socket_folder() -> Path:
    """A new one, for all files that engines and gateways of one server share; its paths are short enough for sockets.
    Whoever makes it removes it."""
    folder = Path(tempfile.mkdtemp(prefix="headrace-"))
    if len(str(folder)) + len("/engine-999-9999.sock") <= MAX_SOCKET_PATH:
        return folder
    with contextlib.suppress(OSError):
        folder.rmdir()
    return Path(tempfile.mkdtemp(prefix="headrace-", dir="/tmp"))
