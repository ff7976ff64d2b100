"""Work that ends early when its client leaves or the server must stop: servers do not cancel it by themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

from gateway.http.drain import Drain

T = TypeVar("T")


class ClientGone(Exception):
    """Nobody is left to answer."""


class MustStop(Exception):
    """The drain's time is up."""


async def disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def run_unless_ended(work: Coroutine[Any, Any, T], receive: Receive, drain: Drain) -> T:
    """The work's result; or, with the work cancelled and over, ClientGone or MustStop."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(disconnected(receive))
    forced: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    tasks: tuple[asyncio.Future[Any], ...] = (task, gone, forced)
    try:
        with drain.when_forced(lambda: forced.set_result(None)):
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        # First of all: a server tells of a disconnect only once, and a result is of no use to who left.
        if gone.done():
            raise ClientGone
        if task.done():
            return task.result()
        raise MustStop
    finally:
        for each in tasks:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
