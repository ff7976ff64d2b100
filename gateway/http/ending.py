"""How a process is told to end, and what it does last."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable
from typing import Any, TypeVar, cast

T = TypeVar("T")
STRAGGLER_S = 0.5
STRAGGLER_ROUNDS = 4

log = logging.getLogger("headrace.http")


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


def end_with_stdin() -> None:
    """SIGTERM to this process once whoever holds the other end of its standard input is gone, killed or not."""

    def watch() -> None:
        try:
            while os.read(0, 4096):  # not sys.stdin, whose lock a thread must not hold when the interpreter ends
                pass
        except OSError:
            pass  # there is none: it is closed
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="standard input", daemon=True).start()


async def within(seconds: float, task: asyncio.Task[Any], hurry: asyncio.Event) -> None:
    """Waits for the task, for so long, or until there is no time for it any more."""
    hurried = asyncio.create_task(hurry.wait())
    await asyncio.wait({task, hurried}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    hurried.cancel()


async def aside(work: Callable[[], T]) -> T:
    """In a thread that the end of the process does not wait for, as it does for those of asyncio.to_thread."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(error: Exception | None, result: T | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(cast(T, result))

    def run() -> None:
        error, result = None, None
        try:
            result = work()
        except Exception as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, error, result)

    threading.Thread(target=run, name="aside", daemon=True).start()
    return await future


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
