"""An event loop in a thread of its own, for programs that know none."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future, wait
from typing import Any, Generic, TypeVar

from gateway.http.ending import end_stragglers
from gateway.offline.errors import closed

T = TypeVar("T")

CLEAN_UP_S = 20.0  # for work that is cancelled to end what it has begun
JOIN_S = 5.0


class LoopThread:
    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._is_ending = False
        # A daemon, or Python would wait for it before it calls what ends it.
        self._thread = threading.Thread(target=self._run, name="headrace", daemon=True)
        self._thread.start()

    @property
    def is_here(self) -> bool:
        return threading.current_thread() is self._thread

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Waits for it, from any other thread. Whatever ends the wait, Ctrl-C above all, ends the work first."""
        if self._is_ending:
            work.close()
            raise closed()
        call = _Call(work)
        try:
            self._loop.call_soon_threadsafe(call.begin)
            return call.outcome.result()
        except BaseException:
            if not call.outcome.done():
                self._loop.call_soon_threadsafe(call.cancel)
                wait([call.outcome], CLEAN_UP_S)
            raise

    def end(self) -> None:
        """What still runs is cancelled. Safe to call again."""
        if not self._is_ending:
            self._is_ending = True
            self._loop.call_soon_threadsafe(self._loop.stop)
        if not self.is_here:
            self._thread.join(JOIN_S)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            self._loop.run_until_complete(end_stragglers())
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        finally:
            self._loop.close()


class _Call(Generic[T]):
    """Its outcome is there when the work has ended, not as soon as it is cancelled."""

    def __init__(self, work: Coroutine[Any, Any, T]) -> None:
        self.outcome: Future[T] = Future()
        self._work = work
        self._task: asyncio.Task[T] | None = None

    def begin(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._work)
        self._task.add_done_callback(self._settle)

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()
        else:  # whoever called was interrupted before it could begin
            self._work.close()
            self.outcome.set_exception(closed())

    def _settle(self, task: asyncio.Task[T]) -> None:
        if task.cancelled():
            self.outcome.set_exception(closed())
        elif (error := task.exception()) is not None:
            self.outcome.set_exception(error)
        else:
            self.outcome.set_result(task.result())
