"""Draining: no new work, running work finishes, what is left at the deadline is ended with an error event."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Drain:
    """Counts open requests and says when they should stop. One per gateway process, used on its event loop."""

    def __init__(self) -> None:
        self.draining = False
        self.open_requests = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._forced = asyncio.Event()
        self._stops: dict[int, Callable[[], None]] = {}
        self._next_stop = 0

    @property
    def forced(self) -> bool:
        """Whether open streams must end now, each with an error event of its own."""
        return self._forced.is_set()

    async def wait_forced(self) -> None:
        await self._forced.wait()

    @contextmanager
    def when_forced(self, stop: Callable[[], None]) -> Iterator[None]:
        """While it is held, `stop` is called once the time is up: at once where it already is."""
        key, self._next_stop = self._next_stop, self._next_stop + 1
        self._stops[key] = stop
        if self.forced:
            stop()
        try:
            yield
        finally:
            del self._stops[key]

    @contextmanager
    def request(self) -> Iterator[None]:
        """Held by a request from admission to its last byte."""
        self.open_requests += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.open_requests -= 1
            if self.open_requests == 0:
                self._idle.set()

    async def run(self, timeout_s: float, grace_s: float = 5.0) -> bool:
        """Waits for open requests to end by themselves, then makes them. True if none was cut and none is left."""
        self.draining = True
        if await self._idle_within(timeout_s):
            return True
        self._forced.set()
        for stop in list(self._stops.values()):
            stop()
        await self._idle_within(grace_s)
        return False

    async def _idle_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True
