"""The feed of the live page: what it joins, and that nobody pays for it while nobody looks."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import pytest

from gateway.answers.live import MAX_ENDED
from gateway.dashboard import feed as module
from gateway.dashboard.elsewhere import Elsewhere, Named, added, named, newest
from gateway.dashboard.feed import WATCH_S, Feed
from gateway.dashboard.lately import WINDOW_S, Window, quantile
from gateway.dashboard.types import EndedView, Event, RowView
from gateway.engine_metrics import NO_STATS
from gateway.http.app import create_app
from gateway.metrics import Figures, Metrics
from gateway.services import Services
from scheduler.protocol import BlockMap, Queued, Row, Snapshot
from tests.fixtures.fakes import DEADLINE_S, MODEL, FakeEngine, Script, post, toy_services


def row(seq_id: int | None, **changes: Any) -> Row:
    made = Row(seq_id, 0, "decode", 10, 12, 2, 100, 4, 1, 0, 0, 1.5)
    return msgspec.structs.replace(made, **changes)


def snapshot(*rows: Row, queue: list[Queued] | None = None, **stats: int) -> Snapshot:
    told = msgspec.structs.replace(NO_STATS, **{"running": len(rows), "blocks_used": len(rows), **stats})
    runs = [(len(rows), 1, 0), (8 - len(rows), 0, 0)]
    return Snapshot(list(rows), queue or [], BlockMap(8, 1, runs), told)


def decoded(data: bytes) -> Event:
    assert data.startswith(b"data: ") and data.endswith(b"\n\n") and data.count(b"\n") == 2
    return msgspec.json.decode(data[6:], type=Event)


class Pauses:
    """Each sleep lasts until the test lets it end."""

    def __init__(self) -> None:
        self.slept: list[float] = []
        self._gate = asyncio.Semaphore(0)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await self._gate.acquire()

    def go_on(self) -> None:
        self._gate.release()


@dataclass
class World:
    engine: FakeEngine
    services: Services
    pauses: Pauses
    feed: Feed


def world(**engine: Any) -> World:
    fake = FakeEngine(**{"snapshot": snapshot, "automatic": False, **engine})
    services, pauses = toy_services(fake), Pauses()
    return World(fake, services, pauses, Feed(services, pauses.sleep))


async def next_event(events: AsyncGenerator[bytes]) -> Event:
    async with asyncio.timeout(DEADLINE_S):
        return decoded(await anext(events))


async def test_nothing_is_asked_of_the_engine_while_nobody_looks() -> None:
    w = world(automatic=True)
    connection = post(create_app(w.services), "/v1/completions", {"model": MODEL, "prompt": "a", "max_tokens": 4})
    await connection.end()
    assert connection.status == 200 and w.engine.watches == []


async def test_it_is_asked_once_for_all_who_look_and_no_more_when_they_have_left() -> None:
    w = world()
    with w.feed.viewer() as one, w.feed.viewer() as other:
        assert (await next_event(one)).engines[0].up and (await next_event(other)).engines[0].up
        assert w.engine.watches == [WATCH_S]
        poller = w.feed._poller
    assert poller is not None
    await asyncio.wait([poller], timeout=DEADLINE_S)
    assert poller.cancelled() and w.feed.num_viewers == 0
    w.pauses.go_on()
    await asyncio.sleep(0)
    assert w.engine.watches == [WATCH_S]


async def test_it_asks_again_before_the_engine_stops_telling() -> None:
    w = world()
    w.services.clock.step_s = 0.5  # type: ignore[attr-defined]
    with w.feed.viewer() as events:
        for _ in range(8):
            await next_event(events)
            w.pauses.go_on()
    assert 2 <= len(w.engine.watches) < 8
    assert set(w.pauses.slept) == {module.INTERVAL_S}


async def test_rows_are_named_by_their_requests() -> None:
    w = world(script=lambda submit, choice: Script([[65], [66]], "stop"))
    body = {"model": MODEL, "prompt": ["ab", "cde"], "n": 2, "max_tokens": 9}
    request = post(create_app(w.services), "/v1/completions", body, **{"x-request-id": "mine"})
    await w.engine.until(lambda: len(w.engine.playing) == 4)
    waits = Queued(3, 3, 0, 0, False, 0.25, 1.234)
    parked = Queued(None, 3, 0, 0, True, 0.25, None)
    w.engine.snapshot = lambda: snapshot(row(0), row(1, phase="prefill"), row(99), queue=[waits, parked], waiting=2)
    with w.feed.viewer() as events:
        event = await next_event(events)
    (engine,) = event.engines
    assert [(each.id, each.choice, each.endpoint, each.phase) for each in engine.rows] == [
        ("mine", 0, "completions", "decode"),
        ("mine", 1, "completions", "prefill"),
        (None, 0, None, "decode"),
    ]
    assert [(each.id, each.choice, each.predicted_s, each.waits_for_choice) for each in engine.queue] == [
        ("mine", 3, 1.23, False),
        (None, 0, None, True),
    ]
    assert (event.requests, event.ended, engine.running, engine.waiting) == (1, [], 3, 2)
    assert engine.blocks is not None and engine.blocks.runs == [(3, 1, 0), (5, 0, 0)]
    while w.engine.playing:
        w.engine.step()
    await request.end()
    with w.feed.viewer() as events:
        event = await next_event(events)
    assert event.requests == 0 and [each.id for each in event.engines[0].rows] == [None, None, None]
    (ended,) = event.ended
    assert (ended.id, ended.endpoint, ended.outcome, ended.prompt_tokens) == ("mine", "completions", "stop", 5)
    assert ended.ttft_ms is not None and ended.total_ms > ended.ttft_ms


async def test_the_last_twenty_that_ended_the_newest_first() -> None:
    w = world(automatic=True)
    app = create_app(w.services)
    for number in range(25):
        await post(app, "/v1/completions", {"model": MODEL, "prompt": "a"}, **{"x-request-id": f"r{number}"}).end()
    with w.feed.viewer() as events:
        event = await next_event(events)
    assert [each.id for each in event.ended] == [f"r{number}" for number in range(24, 4, -1)]


async def test_one_that_is_refused_ends_too() -> None:
    w = world(refusal=lambda submit: RuntimeError("no"))
    await post(create_app(w.services), "/v1/completions", {"model": MODEL, "prompt": "a"}).end()
    assert w.services.live.num_requests == 0 and [each.exchange.status for each in w.services.live.ended()] == [500]


async def test_an_engine_that_is_down_is_said_to_be_and_asked_again_when_it_is_back() -> None:
    w = world(ready=None)
    with w.feed.viewer() as events:
        assert not (await next_event(events)).engines[0].up
        assert w.engine.watches == []
        w.engine.ready = FakeEngine().ready
        w.pauses.go_on()
        assert (await next_event(events)).engines[0].up
        assert w.engine.watches == [WATCH_S]
        w.engine.ready = None
        w.pauses.go_on()
        event = await next_event(events)
        assert not event.engines[0].up and event.engines[0].blocks is None


async def test_an_engine_that_says_nothing_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.0)
    w = world(snapshot=lambda: None, stats=msgspec.structs.replace(NO_STATS, running=3))
    with w.feed.viewer() as events:
        (engine,) = (await next_event(events)).engines
    assert (engine.up, engine.seen_s, engine.running, engine.blocks) == (True, None, 3, None)


async def test_who_reads_slowly_gets_the_newest() -> None:
    w = world()
    with w.feed.viewer() as quick, w.feed.viewer() as slow:
        await next_event(slow)
        for _ in range(5):
            newest = await next_event(quick)
            w.pauses.go_on()
        seen = await next_event(slow)
        assert seen.at == newest.at
        assert (await next_event(quick)) is not None


async def test_it_ends_where_the_server_drains() -> None:
    w = world()
    with w.feed.viewer() as events:
        await next_event(events)
        w.services.drain.draining = True
        w.pauses.go_on()
        with pytest.raises(StopAsyncIteration):
            await next_event(events)


async def test_a_fault_ends_it_and_the_next_who_looks_begins_anew(caplog: pytest.LogCaptureFixture) -> None:
    w = world()
    w.engine.snapshot = lambda: 1 / 0  # type: ignore[assignment, return-value]
    with w.feed.viewer() as events:
        with pytest.raises(StopAsyncIteration):
            await next_event(events)
        assert "nothing more can be shown" in caplog.text
        w.engine.snapshot = snapshot
        with w.feed.viewer() as others:
            assert (await next_event(others)).engines[0].up
    assert w.feed.num_viewers == 0


def figures(ttft: list[int], generation: int = 0) -> Figures:
    return Figures(tuple(ttft + [0] * (18 - len(ttft))), tuple([0] * 19), 0, generation)


def test_figures_are_of_the_last_seconds_only() -> None:
    window = Window()
    assert window.add(0.0, figures([100], 1000)).tokens_per_s is None
    lately = window.add(1.0, figures([101], 1050))
    assert (lately.tokens_per_s, lately.prompt_tokens_per_s, lately.itl_p50_ms) == (50.0, 0.0, None)
    assert lately.ttft_p50_ms == 2.5  # of the one in the first bucket, which ends at 5 ms
    for second in range(2, 20):
        lately = window.add(float(second), figures([101], 1050))
    assert (lately.tokens_per_s, lately.ttft_p50_ms) == (0.0, None)
    assert len(window._taken) <= WINDOW_S + 2


def test_sums_that_fall_are_no_figures() -> None:
    """As those over gateways do, where one of them has gone."""
    window = Window()
    window.add(0.0, figures([100, 7], 1000))
    lately = window.add(1.0, figures([40, 9], 900))
    assert (lately.tokens_per_s, lately.ttft_p50_ms) == (0.0, 7.5)


@pytest.mark.parametrize(
    ("counts", "share", "expected"),
    [
        ([0, 0, 0, 0], 0.5, None),
        ([4, 0, 0, 0], 0.5, 0.5),
        ([1, 1, 0, 0], 0.5, 1.0),
        ([0, 0, 10, 0], 0.99, 2.0 + 2.0 * 0.99),
        ([0, 0, 0, 3], 0.5, 4.0),
    ],
)
def test_quantiles_of_buckets(counts: list[int], share: float, expected: float | None) -> None:
    assert quantile((1.0, 2.0, 4.0), counts, share) == (expected if expected is None else pytest.approx(expected))


# other gateways


def of_another(slot: int, id: str, ago_s: float) -> Elsewhere:
    figures = Figures(ttft=(1, 2), inter_token=(3,), prompt_tokens=10, generation_tokens=20)
    ended = EndedView(f"ended-{id}", "chat", "stop", 1, 0, 1, 5.0, 9.0, ago_s)
    return Elsewhere(2, 1, figures, [Named(0, slot, id, 1, "chat")], [ended])


def test_rows_without_a_name_have_another_gateways() -> None:
    view = RowView("ours", 0, "chat", 0, "decode", 1, 0, 1, 1, 9, 1, 0, 0, 0.1)
    nameless = msgspec.structs.replace(view, id=None, endpoint=None)
    rows = [view, msgspec.structs.replace(nameless, slot=1), msgspec.structs.replace(nameless, slot=2)]
    others = [of_another(0, "not this", 1.0), of_another(1, "theirs", 1.0)]
    assert [row.id for row in named(rows, others, engine=1)] == ["ours", None, None]
    found = named(rows, others, engine=0)
    assert [(row.id, row.choice, row.endpoint) for row in found] == [
        ("ours", 0, "chat"),
        ("theirs", 1, "chat"),
        (None, 0, None),
    ]


def test_counts_are_added_and_the_newest_ends_come_first() -> None:
    ours = Figures(ttft=(0, 1), inter_token=(5,), prompt_tokens=1, generation_tokens=2)
    others = [of_another(0, "a", 3.0), of_another(0, "b", 1.0)]
    assert added(ours, others) == Figures((2, 5), (11,), 21, 42)
    assert added(ours, []) == ours
    ended = msgspec.structs.replace(others[0].ended[0], id="ours", ago_s=2.0)
    assert [each.id for each in newest([ended], others)] == ["ended-b", "ours", "ended-a"]
    assert len(newest([ended] * 30, others)) == MAX_ENDED


class Others:
    """Two more gateways."""

    async def ask_for_series(self) -> None:
        raise AssertionError

    async def timeline(self, request_id: str, key: str | None) -> bytes:
        raise AssertionError

    async def live(self) -> list[Elsewhere]:
        figures = Figures(
            tuple([0] * len(Metrics().figures().ttft)), tuple([0] * len(Metrics().figures().inter_token)), 0, 0
        )
        return [Elsewhere(2, 1, figures, [Named(0, 0, "theirs", 0, "chat")], []), Elsewhere(1, 1, figures, [], [])]


async def test_an_event_has_what_other_gateways_do() -> None:
    w = world(snapshot=lambda: snapshot(row(None)))
    services = replace(w.services, others=Others())
    with Feed(services, w.pauses.sleep).viewer() as events:
        event = await next_event(events)
    assert (event.requests, event.streams) == (3, 2)
    assert [each.id for each in event.engines[0].rows] == ["theirs"]
