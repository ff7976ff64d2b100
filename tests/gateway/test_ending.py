"""Threads that the end of a process does not wait for."""

import asyncio
import subprocess
import sys
import threading

import pytest

from gateway.http.ending import aside, within
from tests.fixtures.engines import PATIENCE_S, ROOT

ENDLESS = """
import asyncio, threading
from gateway.http.ending import aside, within
async def main():
    await within(0.1, asyncio.create_task(aside(threading.Event().wait)), asyncio.Event())
asyncio.run(main())
print("ended")
"""


async def test_what_it_returns_and_raises_comes_back() -> None:
    assert await aside(lambda: threading.current_thread().daemon) is True
    with pytest.raises(ZeroDivisionError):
        await aside(lambda: 1 // 0)


async def test_one_that_is_not_waited_for_any_more_may_still_end() -> None:
    going_on, ended = threading.Event(), threading.Event()

    def work() -> None:
        going_on.wait(PATIENCE_S)
        ended.set()

    task = asyncio.create_task(aside(work))
    await within(0.01, task, asyncio.Event())
    task.cancel()
    await asyncio.wait({task})
    going_on.set()
    assert await asyncio.to_thread(ended.wait, PATIENCE_S)


def test_a_process_ends_beside_one_that_never_does() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ENDLESS], stdout=subprocess.PIPE, text=True, timeout=PATIENCE_S, cwd=ROOT, check=True
    )
    assert done.stdout == "ended\n"
