"""What a client sees of an engine that dies under its answer: nothing, but for a comment and a pause."""

import asyncio
import json
from typing import Any

import msgspec
import pytest

from gateway.answers import migration
from gateway.answers.migration import MAX_IN_A_ROW, REMARK
from gateway.engines.client import EngineUnavailable
from gateway.http.app import create_app
from gateway.services import Services
from scheduler.types import Rejected
from tests.fixtures.fakes import DEADLINE_S, MODEL, Connection, FakeEngine, Script, counted, events, post, toy_services

COMPLETIONS, CHAT, MESSAGES, RESPONSES = "/v1/completions", "/v1/chat/completions", "/v1/messages", "/v1/responses"
HI = [{"role": "user", "content": "hi"}]
TEXT = "I say 👩‍👩‍👧 and 🎉."
CALL = '<tool_call>\n{"name": "look", "arguments": {"at": "é"}}\n</tool_call>'
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "text": (COMPLETIONS, TEXT, {"prompt": "a"}),
    "token ids": (COMPLETIONS, TEXT, {"prompt": "a", "return_token_ids": True}),
    "a stop string": (COMPLETIONS, TEXT, {"prompt": "a", "stop": ["and 🎉", "and 🎈"]}),
    "logprobs": (CHAT, TEXT, {"messages": HI, "logprobs": True, "top_logprobs": 2}),
    "three choices": (CHAT, TEXT, {"messages": HI, "n": 3}),
    "two prompts": (COMPLETIONS, TEXT, {"prompt": ["a", "bc"], "n": 2}),
    "a call": (CHAT, f"See: {CALL}", {"messages": HI, "tools": [TOOL]}),
    "messages": (MESSAGES, TEXT, {"messages": HI, "max_tokens": 99}),
    "responses": (RESPONSES, TEXT, {"input": "hi"}),
}


def speaker(text: str) -> FakeEngine:
    """Later choices say less."""
    texts = [text, text[:-3], text[:9]]
    return FakeEngine(lambda submit, choice: Script.of(texts[submit.seq_ids[choice] % 3]), automatic=False)


def ask(services: Services, path: str = COMPLETIONS, **fields: Any) -> Connection:
    return post(create_app(services), path, {"model": MODEL, **fields})


async def step(engine: FakeEngine, count: int = 1) -> None:
    """Each with time for whoever reads."""
    for _ in range(count):
        engine.step()
        for _ in range(4):
            await asyncio.sleep(0)


async def finish(engine: FakeEngine, *connections: Connection) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not all(connection.task.done() for connection in connections):
            await step(engine)
            await asyncio.sleep(0)
    for connection in connections:
        await connection.end()


async def revive(engine: FakeEngine) -> None:
    """Another one, to which all come back."""
    lost = len(engine.submitted)
    engine.rise()
    await engine.until(lambda: len(engine.submitted) > lost)
    await engine.until(lambda: bool(engine.playing))


async def answer(kind: str, stream: bool, *cuts: int) -> tuple[bytes, Services, FakeEngine]:
    """The engine dies after so many steps, and so many more."""
    path, text, fields = KINDS[kind]
    engine = speaker(text)
    services = toy_services(engine)
    connection = ask(services, path, stream=stream, **fields)
    num_sequences = fields.get("n", 1) * (2 if kind == "two prompts" else 1)
    await engine.until(lambda: len(engine.playing) == num_sequences)
    for cut in cuts:
        await step(engine, cut)
        if not engine.playing:
            break
        engine.die(from_outside=True)
        await revive(engine)
    await finish(engine, connection)
    assert connection.status == 200
    return connection.body, services, engine


def without_pauses(body: bytes) -> bytes:
    return body.replace(REMARK, b"")


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("kind", KINDS)
async def test_the_answer_is_the_same_to_the_byte_wherever_the_engine_died(kind: str, stream: bool) -> None:
    calm, services, engine = await answer(kind, stream)
    num_steps = 1 + len(KINDS[kind][1].encode())
    for cut in range(num_steps):
        body, after, died = await answer(kind, stream, cut)
        assert without_pauses(body) == calm, cut
        assert body.count(REMARK) == (stream and len(died.submitted) > len(engine.submitted))
        for name in ("generation_tokens_total", "prompt_tokens_total", "choices_total", "ttft_seconds_count"):
            assert counted(after, name) == counted(services, name), name
        for cause in ("failed", "client_closed"):
            assert counted(after, "aborts_total", cause=cause) == 0


async def test_it_may_die_again_and_again_as_long_as_tokens_come_in_between() -> None:
    calm, *_ = await answer("three choices", True)
    body, services, _ = await answer("three choices", True, *[2] * 9)
    assert without_pauses(body) == calm
    assert 1 < body.count(REMARK) <= 9  # with what comes next, which is nothing as long as a character is not whole
    assert counted(services, "migrations_total", outcome="moved") == 9
    assert counted(services, "migration_seconds_count") == 9


async def test_what_is_submitted_again_says_what_each_choice_has() -> None:
    engine = FakeEngine(lambda submit, choice: Script.of("abcdef"[choice:]), automatic=False)
    connection = ask(toy_services(engine, max_wait_s=9.0), CHAT, messages=HI, n=3, seed=5)
    await engine.until(lambda: len(engine.playing) == 3)
    await step(engine, 5)  # the last has ended
    engine.die()
    await revive(engine)
    first, again = engine.submitted
    told = {"seq_ids": [0, 1], "seeds": first.seeds[:2], "generated": [[*b"abcde"], [*b"bcdef"]], "max_wait_s": None}
    assert again == msgspec.structs.replace(first, **told)
    await finish(engine, connection)


async def test_choices_that_are_too_long_for_one_frame_go_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migration, "MAX_TOKENS", 12)
    engine = speaker(TEXT)
    connection = ask(toy_services(engine), prompt=["ab", "c"], n=3)
    await engine.until(lambda: len(engine.playing) == 6)
    await step(engine, 5)
    engine.die()
    await revive(engine)
    assert [request.seq_ids for request in engine.submitted[2:]] == [[0, 1], [2], [3, 4], [5]]
    await finish(engine, connection)


async def test_what_was_asked_of_a_prompt_is_asked_once_more_only_if_it_was_not_told() -> None:
    for num_steps, asked in ((0, 1), (2, None)):
        engine = speaker(TEXT)
        connection = ask(toy_services(engine), prompt="abc", prompt_logprobs=1, n=2)
        await engine.until(lambda engine=engine: len(engine.playing) == 2)  # type: ignore[misc]
        await step(engine, num_steps)
        engine.die()
        await revive(engine)
        assert [request.params.prompt_logprobs for request in engine.submitted] == [1, asked]
        await finish(engine, connection)
        assert len(json.loads(connection.body)["choices"][0]["prompt_logprobs"]) == 3


async def test_its_time_between_engines_has_a_cause_of_its_own() -> None:
    _, services, _ = await answer("text", False, 3, 4)
    request_id = next(iter(services.timelines._ended))
    told = services.timelines.find(request_id, None, 0.0)
    assert told is not None
    spent = {each.cause: each.ms for each in told.causes}
    assert spent["migration"] > 0 and spent["decode"] > 0
    assert sum(spent.values()) == pytest.approx(told.total_ms)
    assert [event.name for event in told.events].count("migration") == 1


async def test_prompts_that_were_not_submitted_yet_follow_later() -> None:
    engine = FakeEngine(lambda submit, choice: Script.of("x" * (3 + submit.seq_ids[0])), automatic=False)
    connection = ask(toy_services(engine, max_queued=2), prompt=["a", "b", "c", "d", "e"])
    await engine.until(lambda: len(engine.playing) == 2)
    for _ in range(3):
        await step(engine, 2)
        engine.die(from_outside=True)
        await revive(engine)
    await finish(engine, connection)
    texts = [choice["text"] for choice in json.loads(connection.body)["choices"]]
    assert texts == ["x" * (3 + index) for index in range(5)]


# what an operator moves


async def test_what_is_moved_by_plan_is_never_poison_however_often() -> None:
    engine = speaker(TEXT)
    services = toy_services(engine)
    connection = ask(services, prompt="a", stream=True)
    for _ in range(migration.MAX_MOVES + 2):  # without a token in between
        await engine.until(lambda: bool(engine.playing))
        engine.move()
    await engine.until(lambda: bool(engine.playing))
    await finish(engine, connection)
    assert connection.status == 200 and "error" not in connection.body.decode()
    assert counted(services, "migrations_total", outcome="moved") == 1


async def test_a_plan_does_not_clear_a_request_of_the_death_before_it() -> None:
    engine = speaker(TEXT)
    connection = ask(toy_services(engine), prompt="a")
    await die_and_rise(engine)
    await engine.until(lambda: bool(engine.playing))
    engine.move()
    await die_and_rise(engine)
    await finish(engine, connection)
    assert json.loads(connection.body)["error"]["code"] == "poisoned"


@pytest.mark.parametrize("migrates", [True, False])
async def test_who_comes_in_a_pause_waits_for_its_end(migrates: bool) -> None:
    engine = speaker(TEXT)
    engine.is_paused = True
    engine.refusal = lambda submit: EngineUnavailable("paused") if engine.is_paused else None
    services = toy_services(engine, migration=migrates)
    engine.ready, ready = None, engine.ready  # of whom `available` tells
    unpaused = ask(services, prompt="a")
    await unpaused.end()
    assert unpaused.status == 503  # there is nothing that its limits could be
    engine.ready = ready
    engine.accepts = False
    connection = ask(services, prompt=["a", "b"], n=2, stream=True)
    await engine.until(lambda: len(engine.submitted) == 2)
    assert not engine.playing
    engine.is_paused = False
    engine.rise()
    await engine.until(lambda: len(engine.playing) == 4)
    await finish(engine, connection)
    assert connection.status == 200 and b'"error"' not in connection.body


# what makes engines die


async def die_and_rise(engine: FakeEngine, **how: Any) -> None:
    """As soon as something has come back to it."""
    await engine.until(lambda: bool(engine.playing))
    engine.die(**how)
    engine.rise()


async def test_a_request_under_which_two_engines_die_is_not_tried_again() -> None:
    engine = speaker(TEXT)
    services = toy_services(engine)
    connection = ask(services, prompt="a", stream=True)
    await engine.until(lambda: bool(engine.playing))
    await step(engine, 4)
    await die_and_rise(engine)
    await die_and_rise(engine)
    await connection.end()
    (*_, last) = events(connection.body)
    assert last["error"]["code"] == "poisoned" and "died 2 times" in last["error"]["message"]
    assert len(engine.submitted) == 2 and not engine.playing
    assert counted(services, "migrations_total", outcome="poison") == 1
    assert counted(services, "choices_total", finish_reason="error") == 1


async def test_where_nothing_was_sent_yet_it_is_an_error_that_no_client_repeats() -> None:
    engine = speaker(TEXT)
    connection = ask(toy_services(engine), prompt="a")
    await die_and_rise(engine)
    await die_and_rise(engine)
    await connection.end()
    assert (connection.status, connection.headers["x-should-retry"]) == (500, "false")


async def test_its_neighbours_go_on() -> None:
    """The engine dies as soon as it has computed the poison, wherever in the order that comes back."""
    engine = FakeEngine(lambda submit, choice: Script.of("fine"), automatic=False)
    services = toy_services(engine)
    names = ["a", "b", "poison", "c"]
    connections = [ask(services, prompt=name) for name in names]
    await engine.until(lambda: len(engine.playing) == 4)
    async with asyncio.timeout(DEADLINE_S):
        while not all(connection.task.done() for connection in connections):
            here = [request for request in engine.submitted if request.seq_ids[0] in engine.playing]
            if any(bytes(request.prompt) == b"poison" for request in here):
                await die_and_rise(engine)
            await step(engine)
    assert [connection.status for connection in connections] == [200, 200, 500, 200]
    submitted = [bytes(request.prompt).decode() for request in engine.submitted]
    assert submitted.count("poison") == 2
    assert sum(counted(services, "migrations_total", outcome=end) for end in ("failed", "left")) == 0


async def test_a_process_that_somebody_kills_is_not_the_doing_of_one_among_many() -> None:
    """Each time it has just come back, and only so often."""
    for num_deaths, status in ((MAX_IN_A_ROW - 1, 200), (MAX_IN_A_ROW, 500)):
        engine = FakeEngine(lambda submit, choice: Script.of("fine"), automatic=False)
        services = toy_services(engine)
        connection = ask(services, prompt="a")
        for _ in range(num_deaths):
            await engine.until(lambda engine=engine: bool(engine.playing))  # type: ignore[misc]
            engine.die(from_outside=True, others=1)
            engine.rise()
        await finish(engine, connection)
        assert connection.status == status


@pytest.mark.parametrize(("from_outside", "num_back"), [(True, 4), (False, 1)])
async def test_one_after_the_other_comes_back_only_where_one_may_be_to_blame(from_outside: bool, num_back: int) -> None:
    engine = speaker(TEXT)
    services = toy_services(engine)
    connections = [ask(services, prompt=name) for name in "abcd"]
    await engine.until(lambda: len(engine.playing) == 4)
    await step(engine)
    engine.die(from_outside=from_outside)
    engine.rise()
    await engine.until(lambda: len(engine.playing) == num_back)
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(engine.playing) == num_back
    await finish(engine, *connections)
    assert [connection.status for connection in connections] == [200] * 4


# where there is no other engine


async def test_a_new_request_is_refused_while_there_is_none() -> None:
    engine = speaker(TEXT)
    services = toy_services(engine)
    running = ask(services, prompt="a")
    await engine.until(lambda: bool(engine.playing))
    engine.die()
    refused = ask(services, prompt="b")
    await refused.end()
    assert refused.status == 503 and refused.headers["retry-after"]
    await revive(engine)
    await finish(engine, running)
    assert running.status == 200


@pytest.mark.parametrize("stream", [True, False])
async def test_none_in_time_is_an_error(stream: bool) -> None:
    engine = speaker(TEXT)
    services = toy_services(engine, migration_wait_s=0.01)
    connection = ask(services, prompt="a", stream=stream)
    await engine.until(lambda: bool(engine.playing))
    await step(engine, 3)
    engine.die()
    await connection.end()
    error = events(connection.body)[-1] if stream else json.loads(connection.body)
    assert error["error"]["code"] == "engine_unavailable" and "in time" in error["error"]["message"]
    assert counted(services, "migrations_total", outcome="failed") == 1


async def test_the_wait_for_an_engine_is_no_stall() -> None:
    engine = speaker(TEXT)
    connection = ask(toy_services(engine, stall_timeout_s=0.01), prompt="a")
    await engine.until(lambda: bool(engine.playing))
    engine.die()
    await asyncio.sleep(0.05)
    engine.automatic = True
    engine.rise()
    await connection.end()
    assert connection.status == 200


async def test_one_that_is_gone_again_before_it_accepts_is_waited_out() -> None:
    engine = speaker(TEXT)
    refusals = iter([None, EngineUnavailable("gone again"), EngineUnavailable("gone again")])
    engine.refusal = lambda submit: next(refusals, None)
    connection = ask(toy_services(engine), prompt="a")
    await engine.until(lambda: bool(engine.playing))
    engine.die()
    await revive(engine)
    await finish(engine, connection)
    assert connection.status == 200 and len(engine.submitted) == 4


async def test_a_queue_that_is_full_is_waited_for_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migration, "RETRY_S", 0.0)
    await refused_once(Rejected("queue_full", "full", 5.0), 200)


async def test_another_refusal_is_told() -> None:
    await refused_once(Rejected("too_long", "the new one has a smaller cache"), 400)


async def refused_once(refusal: Rejected, status: int) -> None:
    engine = speaker(TEXT)
    refusals = iter([None, refusal])
    engine.refusal = lambda submit: next(refusals, None)
    connection = ask(toy_services(engine), prompt="a")
    await engine.until(lambda: bool(engine.playing))
    engine.die()
    engine.rise()
    await finish(engine, connection)
    assert connection.status == status


# ends meanwhile


async def lost(**fields: Any) -> tuple[Connection, Services, FakeEngine]:
    engine = speaker(TEXT)
    services = toy_services(engine)
    connection = ask(services, prompt="a", stream=True, **fields)
    await engine.until(lambda: bool(engine.playing))
    await step(engine, 3)
    await connection.until(lambda seen: len(seen.sent) > 1)
    engine.die()
    return connection, services, engine


async def test_a_client_that_leaves_is_not_submitted_again() -> None:
    connection, services, engine = await lost()
    connection.leave()
    await connection.end()
    engine.rise()
    await asyncio.sleep(0)
    assert len(engine.submitted) == 1 and not services.returning.locked()
    assert counted(services, "migrations_total", outcome="left") == 1


async def test_the_end_of_a_drain_ends_it() -> None:
    connection, services, engine = await lost()
    assert await services.drain.run(timeout_s=0) is False
    await connection.end()
    assert events(connection.body)[-1]["error"]["code"] == "draining"
    assert len(engine.submitted) == 1 and not services.returning.locked()


async def test_what_fails_unexpectedly_is_told_and_does_not_hang(caplog: pytest.LogCaptureFixture) -> None:
    connection, services, engine = await lost()
    engine.refusal = lambda submit: ZeroDivisionError("a fault of ours")
    engine.rise()
    await connection.end()
    assert events(connection.body)[-1]["error"]["code"] == "internal_error"
    assert "ZeroDivisionError" in caplog.text and not services.returning.locked()
