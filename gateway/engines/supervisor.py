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
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from gateway.engines.handles import EngineHandle, EngineLauncher, Streams
from gateway.engines.process import EngineProcess
from gateway.engines.socket import EngineFailed, EngineObserver, Listener, SocketEngine
from gateway.siblings.messages import engine_socket
from scheduler.protocol import EngineConfig, Progress, Ready

ENGINE_COMMAND: tuple[str, ...] = (sys.executable, "-P", "-m", "engine")  # -P: nothing of the current folder
MAX_SOCKET_PATH = 100  # macOS allows 104 bytes, its temporary folders are long
CLOSE_S = 15.0
START_S = 1800.0  # for an engine to load its weights, where nobody sees how far it is

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
        self.num_restarts = 0
        self.changed_at = timing.clock()  # when the engine last became ready, or ended
        self._process: EngineHandle | None = None
        self._ready_at: float | None = None  # of the engine that runs or ran last
        self._on_progress: Callable[[Progress], None] = _unseen
        self._awaited: asyncio.Future[Ready] | None = None  # by who has asked for a start, until it has come to an end
        self._may_run = asyncio.Event()
        self._life: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self, on_progress: Callable[[Progress], None]) -> Ready:
        """The first start. Raises EngineFailed if it does not succeed: then there is nothing to keep running."""
        self._task = asyncio.create_task(self._keep_running(), name="supervisor")
        return await self._started(on_progress)

    async def launch(self, launcher: EngineLauncher, on_progress: Callable[[Progress], None], within_s: float) -> Ready:
        """After `halt`: starts one, and from then on those that follow it, by this launcher. Raises EngineFailed if it
        does not succeed, and then all is as after `halt`, but for the launcher."""
        self._launcher = launcher
        try:
            async with asyncio.timeout(within_s):
                return await self._started(on_progress)
        except TimeoutError:
            raise EngineFailed("hung", f"the engine was not ready after {within_s:g} s") from None
        finally:
            if self._ready_at is None:
                await self.halt()

    async def halt(self) -> None:
        """Ends the engine and starts no other, until it is told to. In bounded time."""
        self._may_run.clear()
        if self._life is not None:
            self._life.cancel()
            await asyncio.wait({self._life}, timeout=CLOSE_S)

    def keep_trying(self, launcher: EngineLauncher) -> None:
        """After `halt`: engines are started again, as after a death, until one is ready."""
        self._launcher = launcher
        self._may_run.set()

    @property
    def launcher(self) -> EngineLauncher:
        return self._launcher

    @property
    def is_halted(self) -> bool:
        return not self._may_run.is_set()

    @property
    def pid(self) -> int | None:
        """Of the process on this machine, while there is one."""
        return None if self._process is None else self._process.pid

    async def _started(self, on_progress: Callable[[Progress], None]) -> Ready:
        assert self._task, "launched before started"
        self._on_progress, self._ready_at = on_progress, None
        self._awaited = asyncio.get_running_loop().create_future()
        self._may_run.set()
        try:
            either: set[asyncio.Future[Any]] = {self._awaited, self._task}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not self._awaited.done():
                await self._task
            return self._awaited.result()
        finally:
            self._on_progress = _unseen
            self._awaited.cancel()

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

    async def _keep_running(self) -> None:
        delay_s = self._backoff.first_s
        while True:
            await self._may_run.wait()
            failure = await self._whole_life()
            if failure is not None and self._awaited is not None and not self._awaited.done():
                self._may_run.clear()
                self._awaited.set_exception(failure)
            if self.is_halted:
                delay_s = self._backoff.first_s
                continue
            if failure is not None:
                log.error("%s", failure.message)
            if self._ready_at is not None and self._timing.clock() - self._ready_at >= self._backoff.healthy_s:
                delay_s = self._backoff.first_s
            log.warning("starting the engine again in %g s", delay_s)
            self._engine.retry_after_s = max(1.0, delay_s)
            await self._timing.sleep(delay_s)
            delay_s = min(2 * delay_s, self._backoff.limit_s)
            if not self.is_halted:
                self.num_restarts += 1
                self._observer.engine_restarted()

    async def _whole_life(self) -> EngineFailed | None:
        """How it ended; None: it was halted, or came to no failure of its own. A task of its own, which `halt` ends
        without ending us."""
        self._ready_at = None
        self._life = life = asyncio.create_task(self._live(), name="engine")
        try:
            await asyncio.wait({life})
        finally:
            if not life.done():  # we are cancelled
                life.cancel()
                await asyncio.wait({life})
            self._life = None
            self.changed_at = self._timing.clock()
        if life.cancelled():
            return None
        try:
            life.result()
        except EngineFailed as failure:
            return failure
        return None

    async def _live(self) -> None:
        """One engine, from its start to its end. Always raises."""
        self._num_starts += 1
        process = await self._launcher.start(self._folder / f"engine-{self._number}-{self._num_starts}.sock")
        self._process = process
        try:
            async with asyncio.timeout(self._start_s) as limit:
                reader, writer = await self._reach(process)
                listener = Listener(self._on_progress, partial(self._note_ready, limit))
                await self._engine.converse(reader, writer, listener)
        except TimeoutError:
            process.kill()
            raise EngineFailed("hung", f"the engine was not ready after {START_S:g} s") from None
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

    @property
    def _start_s(self) -> float | None:
        """None: who has asked for the start sees its progress, or has set a limit."""
        return START_S if self._awaited is None or self._awaited.done() else None

    async def _reach(self, process: EngineHandle) -> Streams:
        """Raises EngineFailed, also where this machine is short of file descriptors or room on its disk: that passes,
        and the next start may do better."""
        try:
            reader, writer = await process.connect()
            try:
                process.lead_to(self._folder / engine_socket(self._number))  # once we are its first connection
            except OSError:
                writer.transport.abort()
                raise
        except OSError as error:
            raise EngineFailed("internal", f"the engine cannot be reached: {error}") from error
        return reader, writer

    def _explain(self, process: EngineHandle) -> None:
        death = self._engine.death
        if death is not None and not death.explained.is_set():
            death.from_outside = process.was_killed or self.is_halted
            death.explained.set()
            self._on_death(death.from_outside)

    def _note_ready(self, limit: asyncio.Timeout, ready: Ready) -> None:
        limit.reschedule(None)
        self._ready_at = self.changed_at = self._timing.clock()
        if self._awaited is None or self._awaited.done():
            log.info("the engine is ready again")
        else:
            self._awaited.set_result(ready)


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
