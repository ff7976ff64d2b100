"""What the engine's refusals, failures and silence become; and what draining does."""

import asyncio
import json
import logging
from dataclasses import replace
from typing import Any

import pytest

from gateway.assembly import http_settings
from gateway.config import load_config
from gateway.engines.client import EngineUnavailable
from gateway.http.app import create_app
from scheduler.types import Rejected
from tests.fixtures.fakes import (
    DEADLINE_S,
    MODEL,
    Connection,
    FakeEngine,
    Script,
    counted,
    events,
    post,
    toy_app,
    toy_services,
)

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], **fields}


def error_of(connection: Connection) -> dict[str, Any]:
    error: dict[str, Any] = json.loads(connection.body)["error"]
    return error


async def ended(connection: Connection) -> Connection:
    await connection.end()
    return connection


async def test_a_full_queue_is_429_with_a_wait_not_below_the_estimate() -> None:
    engine = FakeEngine(refusal=lambda submit: Rejected("queue_full", "1024 requests wait.", 3.0))
    services = toy_services(engine)
    connection = await ended(post(create_app(services), CHAT, chat()))
    assert (connection.status, error_of(connection)["code"]) == (429, "queue_full")
    assert 3000 <= int(connection.headers["retry-after-ms"]) <= 4500
    assert int(connection.headers["retry-after"]) in (3, 4, 5)
    assert counted(services, "rejections_total", reason="queue_full") == 1
    assert counted(services, "requests_total", endpoint="chat", outcome="rejected") == 1


async def test_stated_waits_are_spread() -> None:
    services = toy_services(FakeEngine(refusal=lambda submit: Rejected("queue_full", "full", 3.0)))
    waits = set()
    for drawn in range(0, 1 << 16, 1 << 12):
        app = create_app(replace(services, random_bits=lambda bits, drawn=drawn: drawn))
        waits.add((await ended(post(app, CHAT, chat()))).headers["retry-after-ms"])
    assert len(waits) == 16


@pytest.mark.parametrize("code", ["too_long", "never_fits"])
async def test_what_can_never_run_is_the_clients_fault(code: str) -> None:
    engine = FakeEngine(refusal=lambda submit: Rejected(code, "too many tokens"))
    connection = await ended(post(toy_app(engine), CHAT, chat()))
    assert (connection.status, error_of(connection)["code"]) == (400, "context_length_exceeded")


async def test_any_other_refusal_is_our_fault() -> None:
    engine = FakeEngine(refusal=lambda submit: Rejected("invalid", "token ids must be in 0 .. 9"))
    connection = await ended(post(toy_app(engine), CHAT, chat()))
    assert (connection.status, error_of(connection)["code"]) == (500, "engine_refused")


async def test_no_engine() -> None:
    connection = await ended(post(toy_app(FakeEngine(ready=None)), CHAT, chat()))
    assert (connection.status, error_of(connection)["code"]) == (503, "engine_unavailable")
    assert connection.headers["retry-after"]


async def test_an_engine_that_goes_away_before_it_accepts() -> None:
    engine = FakeEngine(refusal=lambda submit: EngineUnavailable("It restarts.", 7.0))
    connection = await ended(post(toy_app(engine), CHAT, chat()))
    assert (connection.status, error_of(connection)["message"]) == (503, "It restarts.")
    assert int(connection.headers["retry-after-ms"]) >= 7000


async def test_an_engine_that_does_not_answer() -> None:
    engine = FakeEngine()
    engine.accepting.clear()
    connection = await ended(post(toy_app(engine, submit_timeout_s=0.001), CHAT, chat()))
    assert connection.status == 503
    assert engine.aborted == engine.submitted[0].seq_ids


async def test_one_refused_prompt_ends_the_others() -> None:
    engine = FakeEngine(
        refusal=lambda submit: Rejected("queue_full", "full", 1.0) if submit.prompt == [99] else None, automatic=False
    )
    connection = await ended(post(toy_app(engine), COMPLETIONS, {"model": MODEL, "prompt": ["a", "b", "c"]}))
    assert connection.status == 429
    assert sorted(engine.aborted) == [0, 1]


@pytest.mark.parametrize(
    ("finish", "status", "code"),
    [("error", 500, "generation_failed"), ("grammar", 400, "invalid_grammar"), ("expired", 504, "queue_timeout")],
)
async def test_an_answer_that_failed_in_the_engine(finish: Any, status: int, code: str) -> None:
    engine = FakeEngine(lambda submit, choice: Script([], finish) if choice else Script.of("x" * 50))
    connection = await ended(post(toy_app(engine), CHAT, chat(n=2)))
    assert (connection.status, error_of(connection)["code"]) == (status, code)
    assert engine.aborted == [0]


async def test_the_engine_dies_under_an_answer_and_there_is_no_migration() -> None:
    engine = FakeEngine(automatic=False)
    connection = post(toy_app(engine, migration=False), CHAT, chat())
    await engine.until(lambda: bool(engine.playing))
    engine.step()
    engine.die("The engine process ended (signal 9).")
    await connection.end()
    assert connection.status == 503 and "signal 9" in error_of(connection)["message"]
    assert connection.headers["retry-after"]


async def test_an_engine_that_falls_silent() -> None:
    engine = FakeEngine(automatic=False)
    services = toy_services(engine, stall_timeout_s=0.001)
    connection = await ended(post(create_app(services), CHAT, chat()))
    assert (connection.status, error_of(connection)["code"]) == (504, "stalled")
    assert counted(services, "aborts_total", cause="stalled") == 1


@pytest.mark.parametrize("max_wait", ["0", "300", "86400"])
def test_no_request_is_given_up_while_it_may_wait(max_wait: str) -> None:
    settings = http_settings(load_config({"max_wait": max_wait}))
    assert settings.stall_timeout_s >= (settings.max_wait_s or 7 * 86400) + 3600


async def test_an_output_that_makes_no_sense_fails_its_request_only(caplog: pytest.LogCaptureFixture) -> None:
    engine = FakeEngine(script=lambda submit, choice: Script([[-7]]))
    with caplog.at_level(logging.CRITICAL):
        connection = await ended(post(toy_app(engine), CHAT, chat()))
    assert connection.status == 500
    assert connection.headers["x-request-id"] in error_of(connection)["message"]
    assert "/" not in error_of(connection)["message"] and "Error" not in error_of(connection)["message"]


async def test_a_fault_of_our_own_is_logged_once_and_answered(caplog: pytest.LogCaptureFixture) -> None:
    engine = FakeEngine(refusal=lambda submit: ZeroDivisionError("/secret/path"))
    connection = await ended(post(toy_app(engine), CHAT, chat()))
    assert connection.status == 500
    assert "/secret" not in connection.body.decode()
    assert len([record for record in caplog.records if record.exc_info]) == 1


# draining


async def test_draining_refuses_new_requests_before_their_body() -> None:
    services = toy_services()
    services.drain.draining = True
    connection = Connection(create_app(services), "POST", CHAT, {"content-type": "application/json"})
    await connection.end()
    assert (connection.status, error_of(connection)["code"]) == (503, "draining")
    assert connection.headers["retry-after"]
    assert counted(services, "rejections_total", reason="draining") == 1


async def test_draining_waits_for_running_requests() -> None:
    engine = FakeEngine(automatic=False)
    services = toy_services(engine)
    connection = post(create_app(services), CHAT, chat(stream=True))
    await engine.until(lambda: bool(engine.playing))
    drained = asyncio.create_task(services.drain.run(timeout_s=DEADLINE_S))
    for _ in range(6):
        engine.step()
    await connection.end()
    assert await drained is True
    assert connection.body.endswith(b"data: [DONE]\n\n")


async def test_at_the_drains_end_a_stream_gets_an_error_event() -> None:
    engine = FakeEngine(automatic=False)
    services = toy_services(engine)
    connection = post(create_app(services), CHAT, chat(stream=True))
    await engine.until(lambda: bool(engine.playing))
    engine.step()
    await connection.until(lambda c: len(c.sent) > 1)
    assert await services.drain.run(timeout_s=0) is False
    await connection.end()
    assert events(connection.body)[-1]["error"]["code"] == "draining"
    assert connection.sent[-1]["more_body"] is False
    assert services.drain.open_requests == 0
    assert counted(services, "aborts_total", cause="draining") == 1


@pytest.mark.parametrize("accepted", [True, False])
@pytest.mark.parametrize("stream", [True, False])
async def test_at_the_drains_end_an_answer_not_begun_is_503(stream: bool, accepted: bool) -> None:
    engine = FakeEngine(automatic=False)
    if not accepted:
        engine.accepting.clear()
    services = toy_services(engine)
    connection = post(create_app(services), CHAT, chat(stream=stream))
    await engine.until(lambda: bool(engine.playing) if accepted else bool(engine.submitted))
    await services.drain.run(timeout_s=0)
    await connection.end()
    assert (connection.status, error_of(connection)["code"]) == (503, "draining")
    assert engine.aborted == engine.submitted[0].seq_ids
