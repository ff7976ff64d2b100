"""A sibling's side of what gateways tell each other, and its way to the engine."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from gateway.answers.live import Live
from gateway.dashboard.elsewhere import Elsewhere, elsewhere_of
from gateway.engines.socket import EngineFailed, Listener, SocketEngine
from gateway.engines.tls import open_engine
from gateway.http.ratelimit import Accounts
from gateway.metrics import Metrics
from gateway.openai import encode
from gateway.siblings.messages import (
    LINK,
    Answer,
    Ask,
    Charges,
    Died,
    FromSibling,
    Hello,
    Left,
    Open,
    Prepared,
    Told,
    ToSibling,
    bodies,
    frame,
    to_sibling,
)
from gateway.timeline.store import Timelines
from scheduler.protocol import FrameError, Progress, Ready, Snapshot

TELL_SERIES_S = 2.0  # what a gateway that is killed may have counted in vain
TELL_CHARGES_S = 0.2
SEEK_S = 0.1
WATCH_S = 3.0  # what the engine is asked for at a time, while somebody looks at the live page

log = logging.getLogger("headrace.siblings")


class Link:
    """To the first gateway."""

    def __init__(
        self,
        number: int,
        folder: Path,
        metrics: Metrics,
        accounts: Accounts,
        timelines: Timelines,
        engines: Sequence[SocketEngine],
        live: Live,
    ) -> None:
        self._number = number
        self._path = folder / LINK
        self._metrics = metrics
        self._accounts = accounts
        self._timelines = timelines
        self._engines = engines
        self._live = live
        self._seen: dict[int, tuple[Snapshot, float]] = {}  # by engine, and when
        self._may_open = asyncio.Event()
        self._answering: set[asyncio.Task[None]] = set()
        self._writer: asyncio.StreamWriter | None = None

    async def run(self, lost: Callable[[], None]) -> None:
        """Until the first gateway is gone; then calls `lost`."""
        telling = asyncio.create_task(self._tell_charges())
        counting = asyncio.create_task(self._tell_series())
        try:
            reader, self._writer = await asyncio.open_unix_connection(self._path)
            self._send(Hello(self._number))
            async for body in bodies(reader):
                self._take(to_sibling.decode(body))
        except (OSError, FrameError, msgspec.MsgspecError) as error:
            log.error("the first gateway cannot be heard any more: %s", error)
        finally:
            telling.cancel()
            counting.cancel()
        lost()

    async def prepared(self) -> None:
        """Returns when we may serve."""
        self._send(Prepared())
        await self._may_open.wait()

    async def close(self) -> None:
        """The last word."""
        self._send(Told(self._metrics.series()))
        if self._writer is not None:
            self._writer.close()
            await self._writer.wait_closed()

    def _send(self, message: FromSibling) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(frame(message))

    def _take(self, message: ToSibling) -> None:
        match message:
            case Open():
                self._may_open.set()
            case Died(engine, from_outside):
                self._engines[engine].explain(from_outside)
            case Ask(ask_id, "series"):
                self._send(Answer(ask_id, series=self._metrics.series()))
            case Ask(ask_id, "live"):
                self._send(Answer(ask_id, live=self._elsewhere()))
            case Ask(ask_id, "timeline", request_id, key):
                self._send(Answer(ask_id, timeline=self._timeline(request_id, key)))
            case Ask(ask_id, "shut"):
                self._engines[message.engine].shut(message.pause)
                self._send(Answer(ask_id))
            case Ask(ask_id, "open"):
                self._engines[message.engine].open()
                self._later(self._found(message))
            case Ask(ask_id, "move"):
                self._later(self._move(message))
            case Charges(gateway, spent):
                self._accounts.charge(gateway, spent, asyncio.get_running_loop().time())
            case Left(gateway):
                self._accounts.lose(gateway)

    def _later(self, answer: Coroutine[Any, Any, None]) -> None:
        answering = asyncio.create_task(answer, name="answer")
        self._answering.add(answering)
        answering.add_done_callback(self._answering.discard)

    async def _found(self, asked: Ask) -> None:
        await self._engines[asked.engine].found(asked.wait_s)
        self._send(Answer(asked.ask_id))

    async def _move(self, asked: Ask) -> None:
        engine = self._engines[asked.engine]
        await engine.emptied(asked.wait_s)
        self._send(Answer(asked.ask_id, moved=engine.move(asked.message)))

    def _elsewhere(self) -> Elsewhere:
        """The engines' next snapshots come for the next one who asks; where nobody did of late, there are none."""
        now = time.monotonic()
        for number, engine in enumerate(self._engines):
            engine.watch(WATCH_S, partial(self._see, number))
        seen = [self._seen.get(number, (None, now)) for number in range(len(self._engines))]
        fresh = [snapshot if now - at < WATCH_S else None for snapshot, at in seen]
        return elsewhere_of(self._live, self._metrics, fresh, now)

    def _see(self, engine: int, snapshot: Snapshot) -> None:
        self._seen[engine] = snapshot, time.monotonic()

    def _timeline(self, request_id: str, key: str | None) -> bytes:
        found = self._timelines.find(request_id, key, time.time())
        return b"" if found is None else encode(found)

    async def _tell_charges(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(TELL_CHARGES_S)
            if spent := self._accounts.take_spent(clock()):
                self._send(Charges(self._number, spent))

    async def _tell_series(self) -> None:
        while True:
            await asyncio.sleep(TELL_SERIES_S)
            self._send(Told(self._metrics.series()))


async def follow(socket: Path, engine: SocketEngine, on_ready: Callable[[Ready], None]) -> None:
    """Speaks with the engine that is there now, then with the next. Never returns: the first gateway starts engines,
    and ends this process."""
    listener = Listener(_unseen, on_ready)
    while True:
        try:
            reader, writer = await open_engine(socket)
        except OSError:
            await asyncio.sleep(SEEK_S)
            continue
        try:
            await engine.converse(reader, writer, listener)
        except EngineFailed as failure:
            log.debug("the engine is gone: %s", failure.message)
            await asyncio.sleep(SEEK_S)


def _unseen(progress: Progress) -> None:
    """The first gateway shows it."""
