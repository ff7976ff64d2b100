"""A burst of requests begins over several turns of the event loop."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import httpx
import pytest

from gateway.http.turnstile import LEAST, SHARE, Turnstile
from gateway.services import Services
from tests.fixtures.fakes import MODEL, FakeEngine


class Turns:
    """Counts the turns of the event loop."""

    def __init__(self) -> None:
        self.now = 0
        self._handle: asyncio.Handle | None = None

    @contextmanager
    def counted(self) -> Iterator[None]:
        self._turn()
        try:
            yield
        finally:
            assert self._handle is not None
            self._handle.cancel()

    def _turn(self) -> None:
        self.now += 1
        self._handle = asyncio.get_running_loop().call_soon(self._turn)


async def passing(turnstile: Turnstile, count: int) -> list[tuple[int, int]]:
    """(turn, number) of each that enters, in the order in which they pass."""
    turns, passed = Turns(), list[tuple[int, int]]()

    async def enter(number: int) -> None:
        await turnstile.enter()
        passed.append((turns.now, number))

    with turns.counted():
        await asyncio.gather(*(enter(number) for number in range(count)))
    return passed


@pytest.mark.parametrize(("num_streams", "width"), [(0, LEAST), (LEAST * SHARE, LEAST), (40 * SHARE, 40)])
async def test_so_many_pass_in_a_turn_in_the_order_of_coming(num_streams: int, width: int) -> None:
    turnstile = Turnstile()
    with ExitStack() as stack:
        for _ in range(num_streams):
            stack.enter_context(turnstile.stream())
        passed = await passing(turnstile, 3 * width + 1)
    assert [number for _, number in passed] == list(range(3 * width + 1))
    assert sorted(Counter(turn for turn, _ in passed).values()) == [1, width, width, width]
    assert turnstile.num_streams == 0


async def test_who_comes_alone_does_not_wait() -> None:
    turnstile, turns = Turnstile(), Turns()
    with turns.counted():
        for _ in range(3):
            before = turns.now
            await turnstile.enter()
            assert turns.now == before
            for _ in range(3):
                await asyncio.sleep(0)


async def test_who_left_takes_no_place() -> None:
    turnstile = Turnstile()
    tasks = [asyncio.create_task(turnstile.enter()) for _ in range(3 * LEAST)]
    await asyncio.sleep(0)
    for task in tasks[LEAST : 2 * LEAST]:
        task.cancel()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(each, asyncio.CancelledError) for each in done] == [False] * 8 + [True] * 8 + [False] * 8
    assert len(await passing(turnstile, LEAST + 1)) == LEAST + 1


async def test_a_burst_reaches_the_engine_over_several_turns(client: httpx.AsyncClient, services: Services) -> None:
    turns, submitted = Turns(), list[int]()
    assert isinstance(services.engine, FakeEngine)
    services.engine.refusal = lambda request: submitted.append(turns.now)
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    with turns.counted():
        answers = await asyncio.gather(*(client.post("/v1/chat/completions", json=body) for _ in range(5 * LEAST)))
    assert [answer.status_code for answer in answers] == [200] * len(answers)
    assert len(submitted) == 5 * LEAST
    assert max(Counter(submitted).values()) <= LEAST
