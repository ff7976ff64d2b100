"""Levels of load against a real server: how many at once, when, and what is left when they are stopped."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from bench.answers import Seen, read
from bench.arrivals import Closed, Entry, Load, Open, Replay
from bench.client import Answer, Client
from bench.drive import Driver
from bench.measure import Round
from bench.words import WORDS
from bench.workload import Author, Span, Workload
from tests.bench.toy import Exchange, Toy, hang, toy, whole

AUTHOR = Author(Workload(False, Span(4, 4), Span(3, 3)), "toy", WORDS, 1, "A")


@contextlib.asynccontextmanager
async def driver_of(server: Toy) -> AsyncIterator[tuple[Driver, asyncio.Event]]:
    client, stop = Client(server.url, "", 30.0), asyncio.Event()
    try:
        yield Driver(client, "/v1/completions", stop), stop
    finally:
        client.close()


async def run(server: Toy, load: Load, num: int) -> Round:
    async with driver_of(server) as (driver, _):
        return await driver.run(load, AUTHOR.asks(load, num, "x"))


async def test_every_request_is_sent_once_and_its_tokens_counted() -> None:
    async with toy() as server:
        got = await run(server, Closed(3), 10)
    assert [(seen.failure, seen.prompt_tokens, seen.output_tokens) for seen in got.seen] == [(None, 4, 3)] * 10
    assert len({exchange.body["prompt"] for exchange in server.asked}) == len(server.asked) == 10
    assert got.cut_off == 0 and got.wall_s > 0


async def test_a_closed_loop_has_so_many_in_flight_and_never_more() -> None:
    most = 0

    async def in_groups(server: Toy, exchange: Exchange) -> None:
        nonlocal most
        group = -(-exchange.number // 4) * 4
        await server.until(group)  # would never come from fewer than four streams
        most = max(most, len(server.asked) - group)
        await whole(server, exchange)

    async with toy(in_groups) as server:
        got = await run(server, Closed(4), 12)
    assert len(got.answered) == 12
    assert most < 4
    assert server.num_connections == 4


@pytest.mark.parametrize(
    "load", [Open(1000.0), Open(1000.0, burst=5), Replay(tuple(Entry(at / 1000, 4, 3) for at in range(12)))]
)
async def test_an_open_loop_waits_for_no_answer(load: Load) -> None:
    async def at_the_end(server: Toy, exchange: Exchange) -> None:
        await server.until(12)
        await whole(server, exchange)

    async with toy(at_the_end) as server:
        got = await run(server, load, 12)
    assert len(got.answered) == 12
    assert all(seen.late_s > 0 for seen in got.seen)


async def test_an_open_loop_has_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    async def of_four(server: Toy, exchange: Exchange) -> None:
        await server.until(4)
        await whole(server, exchange)

    monkeypatch.setattr("bench.drive.MAX_OPEN", 4)
    async with toy(of_four) as server:
        got = await run(server, Open(1000.0, burst=6), 6)
    assert [seen.failure.name for seen in got.seen if seen.failure] == ["not sent: 4 requests were open"] * 2
    assert len(got.answered) == 4


async def test_a_run_that_is_stopped_keeps_what_was_answered() -> None:
    async def some(server: Toy, exchange: Exchange) -> None:
        await (whole if exchange.number <= 3 else hang)(server, exchange)

    async with toy(some) as server, driver_of(server) as (driver, stop):
        running = asyncio.create_task(driver.run(Closed(2), AUTHOR.asks(Closed(2), 10, "x")))
        await server.until(5)
        stop.set()
        got = await asyncio.wait_for(running, 30)
    assert (len(got.answered), len(got.seen), got.cut_off) == (3, 3, 2)


@pytest.mark.parametrize(("most", "is_early"), [(500, True), (1 << 20, False)])
async def test_answers_are_read_on_the_way_only_where_they_get_too_many(
    monkeypatch: pytest.MonkeyPatch, most: int, is_early: bool
) -> None:
    asked = list[int]()

    async with toy() as server:

        def noting(answer: Answer) -> Seen:
            asked.append(len(server.asked))
            return read(answer)

        monkeypatch.setattr("bench.drive.MAX_HELD", most)
        monkeypatch.setattr("bench.drive.read", noting)
        got = await run(server, Closed(2), 10)
    assert [(seen.failure, seen.output_tokens) for seen in got.seen] == [(None, 3)] * 10
    assert (min(asked) < 10) == is_early
