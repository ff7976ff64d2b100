"""Work against a client that leaves and a drain that ends: one wins, and nothing is left running."""

import asyncio
from typing import Any

import pytest

from gateway.http.drain import Drain
from gateway.http.race import ClientGone, MustStop, run_unless_ended


async def never() -> Any:
    await asyncio.get_running_loop().create_future()


async def leave() -> Any:
    return {"type": "http.disconnect"}


async def answer() -> int:
    return 7


async def fail() -> None:
    raise ValueError("inside")


async def test_the_result() -> None:
    assert await run_unless_ended(answer(), never, Drain()) == 7


async def test_the_works_own_error() -> None:
    with pytest.raises(ValueError, match="inside"):
        await run_unless_ended(fail(), never, Drain())


async def test_leaving_ends_the_work() -> None:
    with pytest.raises(ClientGone):
        await run_unless_ended(never(), leave, Drain())
    assert len(asyncio.all_tasks()) == 1


async def test_leaving_counts_even_against_a_result() -> None:
    with pytest.raises(ClientGone):
        await run_unless_ended(answer(), leave, Drain())


async def test_the_drains_end() -> None:
    drain = Drain()
    await drain.run(timeout_s=0)
    with drain.request():
        await drain.run(timeout_s=0, grace_s=0)
        with pytest.raises(MustStop):
            await run_unless_ended(never(), never, drain)


async def test_cancelling_ends_the_work() -> None:
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await never()
        finally:
            ended.set()

    task = asyncio.create_task(run_unless_ended(work(), never, Drain()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set() and len(asyncio.all_tasks()) == 1
