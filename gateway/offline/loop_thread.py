"""An event loop in a thread of its own, for programs that know none."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from gateway.http.ending import end_stragglers
from gateway.offline.errors import closed

T = TypeVar("T")

JOIN_S = 5.0


class LoopThread:
    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        # A daemon, or Python would wait for it before it calls what closes it.
        self._thread = threading.Thread(target=self._run, name="headrace", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            self._loop.run_until_complete(end_stragglers())
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        finally:
            self._loop.close()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Waits for it, from any other thread. Whatever ends the wait, Ctrl-C above all, ends the work."""
        try:
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError:  # the loop is closed
            work.close()
            raise closed() from None
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise closed() from None
        finally:
            future.cancel()

    def end(self) -> None:
        """What still runs is cancelled. Safe to call again."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._loop.stop)
        if threading.current_thread() is not self._thread:
            self._thread.join(JOIN_S)

    @property
    def is_here(self) -> bool:
        return threading.current_thread() is self._thread
