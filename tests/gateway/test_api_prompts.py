"""Requests of many prompts, in front of the real scheduler's queue."""

import asyncio
from typing import Any

import pytest

from gateway.engines.client import Sink
from gateway.http.app import create_app
from scheduler.blocks import BlockPool
from scheduler.plan import PromptResult, StepPlan, StepResult
from scheduler.protocol import FirstToken, Output, Submit
from scheduler.scheduler import Scheduler
from scheduler.types import Limits, Rejected, Sequence
from tests.fixtures.fakes import MODEL, FakeEngine, Script, client_of, events, post, toy_services

WAITING, TOKENS = 8, 64
BOUNDS: dict[str, Any] = {"max_queued": WAITING // 2, "max_queued_tokens": TOKENS // 2}


class ScheduledEngine(FakeEngine):
    """The real scheduler; every token is an a."""

    def __post_init__(self) -> None:
        super().__post_init__()
        limits = Limits(2, 16, 256, 4, max_waiting=WAITING, max_waiting_tokens=TOKENS)
        self.scheduler = Scheduler(limits, BlockPool(200, 4), lambda: 0.0)
        self.sinks: dict[int, Sink] = {}
        self.most_waiting = 0

    async def submit(self, request: Submit, sink: Sink) -> None:
        self.submitted.append(request)
        await asyncio.sleep(0)
        prompt, params = request.prompt, request.params
        leader = request.seq_ids[0]
        self.scheduler.submit(
            [
                Sequence(id, params, prompt.copy(), len(prompt), 0.0, leader=None if id == leader else leader)
                for id in request.seq_ids
            ]
        )
        self.most_waiting = max(self.most_waiting, self.scheduler.stats().waiting_tokens)
        self.sinks.update(dict.fromkeys(request.seq_ids, sink))
        asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        plan = self.scheduler.plan()
        if plan is None:
            return
        for event in self.scheduler.commit(plan, self._result(plan)):
            first = FirstToken(0.0, 0.0, 0, event.prompt) if event.first else None
            self.sinks[event.seq_id].deliver(Output(event.seq_id, event.tokens, event.finish, None, first))
        if self.automatic:
            asyncio.get_running_loop().call_soon(self._turn)

    def _result(self, plan: StepPlan) -> StepResult:
        num = sum(work.sample for work in plan.works)
        embedding = PromptResult(embedding=b"\0\0\x80?" * 4)
        return StepResult([97] * num, [None] * num, prompts=dict.fromkeys(range(num), embedding))

    def abort(self, seq_ids: list[int]) -> None:
        super().abort(seq_ids)
        for id in seq_ids:
            self.scheduler.abort(id)


@pytest.mark.parametrize("text", ["a" * 12, "a", "a" * 60])
async def test_prompts_that_together_are_more_than_the_queue_takes(text: str) -> None:
    engine = ScheduledEngine()
    async with client_of(toy_services(engine, **BOUNDS)) as client:
        answer = await client.post("/v1/embeddings", json={"model": MODEL, "input": [text] * 40})
    assert answer.status_code == 200
    assert [each["index"] for each in answer.json()["data"]] == list(range(40))
    assert answer.json()["usage"]["prompt_tokens"] == 40 * len(text)
    assert engine.most_waiting <= TOKENS
    assert not engine.aborted


async def test_they_are_streamed_as_they_come() -> None:
    body = {"model": MODEL, "prompt": ["abcdefgh"] * 20, "n": 2, "max_tokens": 3, "stream": True}
    connection = post(create_app(toy_services(ScheduledEngine(), **BOUNDS)), "/v1/completions", body)
    await connection.end()
    texts = dict.fromkeys(range(40), "")
    for event in events(connection.body)[:-1]:
        assert "error" not in event
        for choice in event["choices"]:
            texts[choice["index"]] += choice["text"]
    assert texts == dict.fromkeys(range(40), "aaa")


def many(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": ["abcdefgh"] * 8, **fields}


async def test_a_later_prompt_that_is_refused_for_good_fails_the_request() -> None:
    def refusal(request: Submit) -> Rejected | None:
        return Rejected("too_long", "too long") if request.seq_ids[0] == 6 else None

    engine = FakeEngine(refusal=refusal)
    connection = post(create_app(toy_services(engine, **BOUNDS)), "/v1/completions", many())
    await connection.end()
    assert connection.status == 400
    assert max(request.seq_ids[0] for request in engine.submitted) == 6
    assert not engine.playing


async def test_a_later_prompt_waits_where_others_have_filled_the_queue() -> None:
    refusals = iter([Rejected("queue_full", "full", 1.0)] * 2)

    def refusal(request: Submit) -> Rejected | None:
        return next(refusals, None) if request.seq_ids[0] == 5 else None

    engine = FakeEngine(lambda submit, choice: Script.of("a" * 4 * (1 + submit.seq_ids[0])), refusal=refusal)
    connection = post(create_app(toy_services(engine, **BOUNDS)), "/v1/completions", many(max_tokens=99))
    await connection.end()
    assert connection.status == 200
    assert [request.seq_ids[0] for request in engine.submitted] == [0, 1, 2, 3, 4, 5, 5, 5, 6, 7]


async def test_nothing_follows_when_the_client_has_left() -> None:
    engine = FakeEngine(automatic=False)
    connection = post(create_app(toy_services(engine, **BOUNDS)), "/v1/completions", many())
    await engine.until(lambda: len(engine.playing) == 4)
    connection.leave()
    await asyncio.wait([connection.task])
    assert sorted(engine.aborted) == [0, 1, 2, 3]
    assert len(engine.submitted) == 4


async def test_nothing_follows_when_the_engine_died_and_there_is_no_migration() -> None:
    engine = FakeEngine(automatic=False)
    connection = post(create_app(toy_services(engine, migration=False, **BOUNDS)), "/v1/completions", many())
    await engine.until(lambda: len(engine.playing) == 4)
    engine.die()
    await connection.end()
    assert connection.status == 503
    assert len(engine.submitted) == 4
