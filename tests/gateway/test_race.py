"""Work that is ended by a client that leaves or by somebody's word: one wins, and nothing is left running."""

import asyncio
from typing import Any

import pytest

from gateway.http.race import ClientGone, Interrupt, MustStop, Presence


async def never() -> Any:
    await asyncio.get_running_loop().create_future()


async def leave() -> Any:
    return {"type": "http.disconnect"}


async def all_ended() -> bool:
    await asyncio.sleep(0)
    return len(asyncio.all_tasks()) == 1


async def test_work_that_ends_by_itself() -> None:
    with Presence(never):
        await asyncio.sleep(0)
    assert await all_ended()


async def test_the_works_own_error() -> None:
    with pytest.raises(ValueError, match="inside"), Presence(never):
        raise ValueError("inside")
    assert await all_ended()


async def test_leaving_ends_the_work() -> None:
    with pytest.raises(ClientGone), Presence(leave):
        await never()
    assert await all_ended()


async def test_what_a_client_sends_is_no_leaving() -> None:
    messages = iter([{"type": "http.request"}] * 3)

    async def receive() -> Any:
        return next(messages, None) or await never()

    with Presence(receive):
        for _ in range(5):
            await asyncio.sleep(0)
    assert next(messages, None) is None and await all_ended()


async def test_a_server_that_fails_to_receive_ends_nothing() -> None:
    async def receive() -> Any:
        raise RuntimeError("broken")

    with Presence(receive):
        for _ in range(5):
            await asyncio.sleep(0)
    assert not _current().cancelling() and await all_ended()


async def test_a_word_ends_the_work_and_the_first_counts() -> None:
    with pytest.raises(MustStop), Interrupt() as interrupt:
        asyncio.get_running_loop().call_soon(interrupt.now, MustStop())
        asyncio.get_running_loop().call_soon(interrupt.now, ClientGone())
        await never()
    assert not _current().cancelling()


async def test_after_the_work_a_word_does_nothing() -> None:
    with Interrupt() as interrupt:
        pass
    interrupt.now(MustStop())
    await asyncio.sleep(0)
    assert not _current().cancelling()


async def test_an_error_on_the_way_out_is_not_replaced() -> None:
    with pytest.raises(ValueError, match="cleaning up"), Interrupt() as interrupt:
        asyncio.get_running_loop().call_soon(interrupt.now, MustStop())
        try:
            await never()
        finally:
            raise ValueError("cleaning up")
    assert not _current().cancelling()


@pytest.mark.parametrize("inner_first", [True, False])
async def test_one_within_another(inner_first: bool) -> None:
    """The outer one's exception, where both are told; the task can be used afterwards."""
    with pytest.raises(ClientGone), Interrupt() as outer, Interrupt() as inner:
        words = [(inner, MustStop()), (outer, ClientGone())]
        for interrupt, error in words if inner_first else reversed(words):
            asyncio.get_running_loop().call_soon(interrupt.now, error)
        await never()
    assert not _current().cancelling()
    async with asyncio.timeout(10):
        await asyncio.sleep(0)


async def test_cancelling_stays_cancelling() -> None:
    ended = asyncio.Event()

    async def work() -> None:
        with Presence(never), Interrupt():
            try:
                await never()
            finally:
                ended.set()

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set() and await all_ended()


async def test_cancelling_beside_a_word_stays_cancelling() -> None:
    async def work() -> None:
        with Interrupt() as interrupt:
            asyncio.get_running_loop().call_soon(interrupt.now, MustStop())
            await never()

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_soon(task.cancel)
    with pytest.raises(asyncio.CancelledError):
        await task


def _current() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task
