"""One poller for all who look on, and none while nobody does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import msgspec

from gateway.dashboard.elsewhere import Elsewhere, added, named, newest
from gateway.dashboard.lately import Window
from gateway.dashboard.types import EngineView, Event
from gateway.dashboard.view import Choices, ended_view, engine_view
from gateway.engines.client import Replica
from gateway.services import Services
from scheduler.protocol import Snapshot

INTERVAL_S = 0.5  # the least time between two events
PATIENCE_S = 1.0  # for an engine that is in a long step: then an event says what is known without it
WATCH_S = 5.0  # what the engine is asked for at a time, so that it stops by itself
RENEW_S = 2.0
MAX_VIEWERS = 32

_encode = msgspec.json.Encoder().encode
_log = logging.getLogger("headrace.dashboard")
Sleep = Callable[[float], Awaitable[None]]


class Feed:
    """Used on one event loop."""

    def __init__(self, services: Services, sleep: Sleep = asyncio.sleep) -> None:
        self._services = services
        self._sleep = sleep
        self.num_viewers = 0
        self._poller: asyncio.Task[None] | None = None
        self._watch = _Watch(())

    @property
    def is_full(self) -> bool:
        return self.num_viewers >= MAX_VIEWERS

    @contextmanager
    def viewer(self) -> Iterator[AsyncGenerator[bytes]]:
        """Events as bytes ready to send, while it is held: the newest of each time one is taken. They end where the
        server drains."""
        self.num_viewers += 1
        if self._poller is None or self._poller.done():
            self._watch = _Watch(self._services.engine.replicas)
            self._poller = asyncio.create_task(self._run(self._watch), name="dashboard")
        try:
            yield self._watch.events()
        finally:
            self.num_viewers -= 1
            if self.num_viewers == 0:
                self._poller.cancel()
                self._poller = None

    async def _run(self, watch: _Watch) -> None:
        try:
            await self._poll(watch)
        except Exception:
            _log.exception("nothing more can be shown")
        finally:
            watch.end()

    async def _poll(self, watch: _Watch) -> None:
        services, window = self._services, Window()
        while not services.drain.draining:
            for looked in watch.replicas:
                looked.renew(services.clock)
            await watch.arrived_within(PATIENCE_S if services.engine.ready is not None else 0.0)
            others = [] if services.others is None else await services.others.live()
            watch.publish(self._event(watch, window, others))
            await self._sleep(INTERVAL_S)

    def _event(self, watch: _Watch, window: Window, others: Sequence[Elsewhere]) -> bytes:
        services = self._services
        now, choices = services.clock(), services.live.choices()
        views = [looked.view(str(number), now, choices) for number, looked in enumerate(watch.replicas)]
        event = Event(
            round(services.wall_clock(), 3),
            services.version,
            services.model.name,
            services.live.num_requests + sum(other.requests for other in others),
            services.turnstile.num_streams + sum(other.streams for other in others),
            window.add(now, added(services.metrics.figures(), others)),
            [msgspec.structs.replace(view, rows=named(view.rows, others, number)) for number, view in enumerate(views)],
            newest([ended_view(ended, now) for ended in services.live.ended()], others),
        )
        return b"data: " + _encode(event) + b"\n\n"


class _Looked:
    """One engine, and what it showed last."""

    def __init__(self, replica: Replica, note: Callable[[], None]) -> None:
        self.is_due = True
        self._replica = replica
        self._note = note
        self._seen: tuple[Snapshot, float] | None = None  # and when
        self._renewed = float("-inf")

    def renew(self, clock: Callable[[], float]) -> None:
        now = clock()
        if self._replica.said is None:
            self._seen, self.is_due = None, False
            self._renewed = float("-inf")
        elif now - self._renewed >= RENEW_S:
            self._replica.watch(WATCH_S, partial(self._take, clock))
            self._renewed = now

    def _take(self, clock: Callable[[], float], snapshot: Snapshot) -> None:
        self._seen, self.is_due = (snapshot, clock()), False
        self._note()

    def expect(self) -> None:
        self.is_due = True

    def view(self, name: str, now: float, choices: Choices) -> EngineView:
        seen = None if self._seen is None else (self._seen[0], now - self._seen[1])
        view = engine_view(name, self._replica.said, self._replica.stats, seen, choices)
        return msgspec.structs.replace(view, draining=True) if self._replica.is_draining else view


class _Watch:
    """From the first who looks to the last who leaves."""

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self._arrived = asyncio.Event()  # a snapshot of each engine that is up
        self.replicas = [_Looked(replica, self._note) for replica in replicas]
        self._data = b""
        self._number = 0
        self._over = False
        self._changed = asyncio.Event()  # another one for each number

    def _note(self) -> None:
        if not any(looked.is_due for looked in self.replicas):
            self._arrived.set()

    async def arrived_within(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._arrived.wait()
        except TimeoutError:
            pass
        self._arrived.clear()
        for looked in self.replicas:
            looked.expect()

    def publish(self, data: bytes) -> None:
        self._data = data
        self._number += 1
        self._wake()

    def end(self) -> None:
        self._over = True
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def events(self) -> AsyncGenerator[bytes]:
        seen = 0
        while not self._over:
            if seen < self._number:
                seen = self._number
                yield self._data
            else:
                await self._changed.wait()
