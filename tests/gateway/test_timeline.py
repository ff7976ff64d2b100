"""Where a request's time went: laps, the engine's cut, what is kept and told."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.http.app import create_app
from gateway.http.exchange import Exchange
from gateway.http.keys import Keys
from gateway.timeline.engine_time import Visit, cut
from gateway.timeline.laps import Laps, lap, timed_by
from gateway.timeline.store import Timelines, timeline_of
from scheduler.plan import Delays
from scheduler.protocol import EngineStats, FirstToken
from tests.fixtures.fakes import MODEL, FakeEngine, client_of, post, toy_services


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_at_every_moment_one_cause_is_charged(clock: Clock) -> None:
    laps = Laps(clock)
    for cause, seconds in (("turn", 1.0), ("receive", 2.0), ("turn", 4.0)):
        laps.enter(cause)  # type: ignore[arg-type]
        clock.now += seconds
    assert laps.so_far() == {"turn": 5.0, "receive": 2.0}
    clock.now += 0.5
    assert laps.so_far() == {"turn": 5.5, "receive": 2.0}
    assert laps.end() == 7.5
    clock.now += 100
    assert laps.so_far() == {"turn": 5.5, "receive": 2.0} and laps.end() == 7.5


def test_a_lap_within_a_lap_takes_its_time_from_it(clock: Clock) -> None:
    laps = Laps(clock)
    with lap("parse"):
        clock.now += 1  # of no request
    with timed_by(laps), lap("template"):
        clock.now += 1
        with pytest.raises(ValueError), lap("tokenize"):
            clock.now += 2
            raise ValueError
        clock.now += 4
    clock.now += 8
    assert laps.so_far() == {"accept": 9.0, "template": 5.0, "tokenize": 2.0}


def test_the_engine_s_lap_is_cut_by_who_knows(clock: Clock) -> None:
    laps = Laps(clock)
    laps.enter_engine(lambda seconds: {"prefill": seconds / 4, "decode": seconds * 3 / 4})
    clock.now += 4
    laps.enter("slow_reader")
    clock.now += 2
    assert laps.so_far() == {"prefill": 1.0, "decode": 3.0, "slow_reader": 2.0}


DELAYS = Delays(
    grammar_s=1.0, choice_s=2.0, rows_s=3.0, blocks_s=4.0, others_prefill_s=5.0, away_s=6.0, fairness_s=0.25
)


def test_what_is_left_before_the_first_token_is_the_turn_in_a_step() -> None:
    first = FirstToken(queued_s=11.0, prefill_s=20.0, cached_tokens=0, delays=DELAYS)
    visit = Visit(submitted_at=100.5, heard_at=140.5, first=first, others_before_s=7.0, others_after_s=9.0, away_s=0.25)
    spent = cut(visit, began=100.0, seconds=50.0)
    assert spent == {
        "waiting_rows": 3.5,  # with half a second in which its prompt was held back for the request's others
        "grammar": 1.0,
        "waiting_choice": 2.0,
        "waiting_blocks": 4.0,
        "waiting_fairness": 0.25,
        "waiting_step": 9.75,
        "prefill": 9.0,
        "others_prefill": 7.0,
        "preemption": 6.25,
        "decode": 7.25,
    }
    assert sum(spent.values()) == 50.0


def test_clocks_that_disagree_change_no_sum() -> None:
    first = FirstToken(queued_s=11.0, prefill_s=20.0, cached_tokens=0, delays=DELAYS)
    visit = Visit(submitted_at=99.0, heard_at=110.0, first=first, others_before_s=0.0, others_after_s=90.0, away_s=3.0)
    spent = cut(visit, began=100.0, seconds=14.0)
    assert sum(spent.values()) == pytest.approx(14.0)
    assert min(spent.values()) >= 0
    assert spent["decode"] == 0 and spent["others_prefill"] == pytest.approx(1.0 + 10 * 5 / 30.25)


@pytest.mark.parametrize("reason", ["step", "rows", "blocks"])
def test_who_was_not_heard_of_waits_for_what_the_queue_waits_for(reason: Any) -> None:
    spent = cut(Visit(submitted_at=101.0), 100.0, 5.0, reason)
    assert sum(spent.values()) == 5.0 and spent[f"waiting_{reason}"] >= 4.0  # type: ignore[index]


def test_the_oldest_timelines_are_let_go_of_and_nobody_sees_another_s(clock: Clock) -> None:
    kept = Timelines(most=3)
    for number in range(5):
        exchange = Exchange(f"r{number}", "POST", clock(), "chat", key="ann", outcome="stop", laps=Laps(clock))
        kept.open(exchange)
        clock.now += 1
        found = kept.find(f"r{number}", "ann", 1000.0)
        assert found is not None and (found.outcome, found.total_ms, found.started) == (None, 1000.0, 999.0)
        assert kept.find(f"r{number}", "bob", 1000.0) is None
        exchange.laps.end()
        kept.close(exchange, 1000.0)
    known = [number for number in range(5) if kept.find(f"r{number}", "ann", 0.0) is not None]
    assert known == [2, 3, 4]
    assert kept.find("r4", None, 0.0) is None


def test_of_two_requests_with_one_id_the_last_is_told(clock: Clock) -> None:
    kept, old, new = (
        Timelines(),
        *(Exchange("r", "POST", clock(), name, laps=Laps(clock)) for name in ("chat", "other")),
    )
    kept.open(old)
    kept.open(new)
    kept.close(old, 0.0)
    found = kept.find("r", None, 0.0)
    assert found is not None and found.endpoint == "other" and found.outcome is None
    assert timeline_of(new, 0.0, ended=False).events == []


# over HTTP


ASKED = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}


async def timeline(client: httpx.AsyncClient, request_id: str, **headers: str) -> httpx.Response:
    return await client.get(f"/v1/requests/{request_id}/timeline", headers=headers)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_has_a_timeline_when_it_has_ended(stream: bool) -> None:
    async with client_of(toy_services(FakeEngine(cached_tokens=4))) as client:
        answer = await client.post("/v1/chat/completions", json={**ASKED, "stream": stream})
        told = (await timeline(client, answer.headers["x-request-id"])).json()
    assert told["id"] == answer.headers["x-request-id"]
    assert (told["endpoint"], told["outcome"], told["status"]) == ("chat", "stop", 200)
    assert (told["cached_tokens"], told["generated_tokens"]) == (4, 6)
    causes = {each["cause"]: each["ms"] for each in told["causes"]}
    assert sum(causes.values()) == pytest.approx(told["total_ms"], abs=0.01)
    assert {"receive", "parse", "template", "prefill", "decode", "slow_reader"} <= causes.keys()
    names = [event["name"] for event in told["events"]]
    assert names.index("parse") < names.index("engine") < names.index("first_token")


async def test_one_under_way_has_one_too() -> None:
    engine = FakeEngine(automatic=False)
    async with client_of(toy_services(engine)) as client:
        asked = asyncio.create_task(
            client.post("/v1/chat/completions", json=ASKED, headers={"x-request-id": "under-way"})
        )
        await engine.until(lambda: bool(engine.submitted))
        told = (await timeline(client, "under-way")).json()
        assert told["outcome"] is None
        assert "waiting_step" in [each["cause"] for each in told["causes"]]
        while not asked.done():
            engine.step()
            await asyncio.sleep(0)
        assert (await timeline(client, "under-way")).json()["outcome"] == "stop"


async def test_what_an_engine_tells_of_a_request_is_known_when_that_has_left() -> None:
    """A router asks the engine that has the request, and none has it in the end."""
    engine = FakeEngine(automatic=False)
    stats = EngineStats(1, 1, 10, 100, 0, 100, 0, 0, 0, 0, 0, 0, "blocks")
    engine.stats_of = lambda seq_id: None if seq_id in engine.aborted else stats  # type: ignore[method-assign]
    services = toy_services(engine)
    connection = post(create_app(services), "/v1/chat/completions", ASKED, **{"x-request-id": "left"})
    await engine.until(lambda: bool(engine.submitted))
    connection.leave()
    await connection.end()
    told = services.timelines.find("left", None, 0.0)
    assert engine.aborted and told is not None and told.outcome == "client_closed"
    causes = {spent.cause for spent in told.causes}
    assert "waiting_blocks" in causes and "waiting_step" not in causes


async def test_nothing_is_known_of_other_requests() -> None:
    async with client_of(toy_services()) as client:
        answer = await timeline(client, "nobody")
        assert answer.status_code == 404 and answer.json()["error"]["code"] == "request_not_found"
        page = await client.get("/v1/models")  # pages have none
        assert (await timeline(client, page.headers["x-request-id"])).status_code == 404


async def test_only_the_key_that_asked_sees_it(tmp_path: Path) -> None:
    (tmp_path / "keys.txt").write_text("ann-secret name=ann\nbob-secret name=bob\n")
    services = replace(toy_services(), keys=Keys("", tmp_path / "keys.txt", float))
    async with client_of(services) as client:
        ann, bob = ({"authorization": f"Bearer {name}-secret"} for name in ("ann", "bob"))
        answer = await client.post("/v1/chat/completions", json=ASKED, headers=ann)
        request_id = answer.headers["x-request-id"]
        statuses = [(await timeline(client, request_id, **headers)).status_code for headers in (ann, bob, {})]
    assert statuses == [200, 404, 401]


def chunks_of(text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        if line.startswith("data: {"):
            yield json.loads(line.removeprefix("data: "))


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_timings_come_with_the_answer_where_they_are_asked_for(path: str) -> None:
    asked = ASKED if "chat" in path else {"model": MODEL, "prompt": "hi"}
    async with client_of(toy_services()) as client:
        whole = (await client.post(path, json={**asked, "include_timings": True})).json()
        plain = (await client.post(path, json=asked)).json()
        options = {"include_timings": True}
        streamed = await client.post(path, json={**asked, "stream": True, "stream_options": options})
        both = {"include_timings": True, "include_usage": True}
        streamed_both = await client.post(path, json={**asked, "stream": True, "stream_options": both})
    assert "timings" not in plain
    for timings in (whole["timings"], list(chunks_of(streamed.text))[-1]["timings"]):
        assert sum(each["ms"] for each in timings["causes"]) == pytest.approx(timings["total_ms"], abs=0.01)
        assert 0 < timings["ttft_ms"] <= timings["total_ms"]
    *chunks, last = chunks_of(streamed.text)
    assert last["choices"] == [] and "usage" not in last
    assert all("timings" not in chunk for chunk in chunks)
    *_, last = chunks_of(streamed_both.text)
    assert last["usage"]["completion_tokens"] == 6 and last["timings"]["total_ms"] > 0


async def test_a_slow_tokenizer_is_blamed(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = count()
    services = replace(toy_services(), clock=lambda: next(ticks) / 1e6)
    encode = services.model.tokenizer.encode

    def slow(*args: Any, **named: Any) -> list[int]:
        for _ in range(500_000):
            next(ticks)
        return encode(*args, **named)

    monkeypatch.setattr(services.model.tokenizer, "encode", slow)
    async with client_of(services) as client:
        answer = await client.post("/v1/completions", json={"model": MODEL, "prompt": "hi", "include_timings": True})
    causes = {each["cause"]: each["ms"] for each in answer.json()["timings"]["causes"]}
    assert max(causes, key=causes.__getitem__) == "tokenize" and causes["tokenize"] >= 500
