"""The engines of one server: started together, each kept running by itself, and one client of them all."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, TypeVar

from gateway.engines.handles import EngineLauncher
from gateway.engines.router import Router
from gateway.engines.socket import EngineObserver, SocketEngine
from gateway.engines.supervisor import Supervisor, socket_folder
from scheduler.protocol import Progress, Ready

T = TypeVar("T")


class Replicas:
    def __init__(
        self,
        launchers: Sequence[EngineLauncher],
        observers: Sequence[EngineObserver],
        prefix_caching: bool = True,
        on_death: Callable[[int, bool], None] = lambda engine, from_outside: None,
    ) -> None:
        """on_death: told which engine, and whether somebody else had killed it."""
        self.folder = socket_folder()  # of all files that engines and gateways share
        self.engines = [SocketEngine(observer) for observer in observers]
        self.client = client_of(self.engines, prefix_caching)
        self.supervisors = [
            Supervisor(launcher, engine, observer, self.folder, number=number, on_death=partial(on_death, number))
            for number, (launcher, engine, observer) in enumerate(zip(launchers, self.engines, observers, strict=True))
        ]

    async def start(self, on_progress: Callable[[Progress], None]) -> list[Ready]:
        """The first start of all. Raises EngineFailed if one does not succeed. on_progress: told of the first, for all
        do the same at the same time."""
        starts: list[asyncio.Task[Ready]] = []
        async with _Together() as together:
            for number, each in enumerate(self.supervisors):
                starts.append(together.run(each.start(on_progress if number == 0 else _unseen)))
        return [each.result() for each in starts]

    async def watch(self) -> None:
        """Returns only by an exception: a fault of ours, never an engine's."""
        async with _Together() as together:
            for each in self.supervisors:
                together.run(each.watch())

    async def close(self) -> None:
        """Stops all, in bounded time. Safe to call again, and before start()."""
        await asyncio.gather(*(each.close() for each in self.supervisors))
        self.kill()

    def kill(self) -> None:
        """At once, and leaves nothing behind."""
        for each in self.supervisors:
            each.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def client_of(engines: Sequence[SocketEngine], prefix_caching: bool) -> SocketEngine | Router:
    return engines[0] if len(engines) == 1 else Router(engines, prefix_caching=prefix_caching)


class _Together:
    """A TaskGroup that raises the first failure itself, not a group of one."""

    def __init__(self) -> None:
        self._group = asyncio.TaskGroup()

    async def __aenter__(self) -> _Together:
        await self._group.__aenter__()
        return self

    async def __aexit__(self, *exc: Any) -> None:
        try:
            await self._group.__aexit__(*exc)
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None

    def run(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        return self._group.create_task(work)


def _unseen(progress: Progress) -> None:
    """Of all but the first."""
