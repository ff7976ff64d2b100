"""Work that ends early when its client leaves or the server must stop: servers do not cancel it by themselves."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from starlette.types import Receive


class ClientGone(Exception):
    """Nobody is left to answer."""


class MustStop(Exception):
    """The drain's time is up."""


class Interrupt:
    """While it is held, `now` ends what its task does with an exception, however deep that waits.

    In the manner of asyncio.timeout: the task is cancelled, and on the way out that cancellation becomes the exception.
    One from elsewhere stays one. Costs no task, where a race between two takes both, and some 0.1 ms of a gateway.
    """

    def __init__(self) -> None:
        self._error: Exception | None = None
        self._task: asyncio.Task[object] | None = None
        self._num_cancelled = 0  # by others, before

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None
        self._task, self._num_cancelled = task, task.cancelling()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        assert task is not None
        if self._error is not None and task.uncancel() <= self._num_cancelled and kind is asyncio.CancelledError:
            raise self._error from None

    def now(self, error: Exception) -> None:
        """From any other task or callback of the loop. The first counts; nothing, where it is not held any more."""
        if self._task is not None and self._error is None:
            self._error = error
            self._task.cancel()


class Presence:
    """While it is held, ClientGone ends what its task does once the client leaves. Only this may receive meanwhile."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._interrupt = Interrupt()
        self._watch: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        self._interrupt.__enter__()
        self._watch = asyncio.create_task(_disconnected(self._receive))
        self._watch.add_done_callback(self._left)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._watch is not None
        self._watch.cancel()
        self._interrupt.__exit__(kind, error, trace)

    def _left(self, watch: asyncio.Task[None]) -> None:
        if not watch.cancelled() and watch.exception() is None:
            self._interrupt.now(ClientGone())


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
