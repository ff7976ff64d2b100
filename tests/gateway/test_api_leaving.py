"""Clients that leave, stop reading, send too much or too slowly: the engine is told, nothing is logged as a fault."""

import logging
from typing import Any

import pytest

from gateway.http.app import create_app
from tests.fixtures.fakes import MODEL, Connection, FakeEngine, Script, counted, events, post, toy_app, toy_services

CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], **fields}


@pytest.fixture(autouse=True)
def no_faults_logged(caplog: pytest.LogCaptureFixture) -> Any:
    yield
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("stream", [False, True])
async def test_leaving_before_the_first_token(stream: bool) -> None:
    engine = FakeEngine(automatic=False)
    services = toy_services(engine)
    connection = post(create_app(services), CHAT, chat(stream=stream, n=2))
    await engine.until(lambda: len(engine.playing) == 2)
    connection.leave()
    await connection.end()
    assert sorted(engine.aborted) == engine.submitted[0].seq_ids
    assert counted(services, "requests_total", endpoint="chat", outcome="client_closed") == 1
    assert counted(services, "aborts_total", cause="client_closed") == 2


@pytest.mark.parametrize("stream", [False, True])
async def test_leaving_in_the_middle(stream: bool) -> None:
    engine = FakeEngine(automatic=False)
    services = toy_services(engine)
    connection = post(create_app(services), CHAT, chat(stream=stream))
    await engine.until(lambda: bool(engine.playing))
    engine.step()
    if stream:
        await connection.until(lambda c: len(c.sent) > 1)
    connection.leave()
    await connection.end()
    assert engine.aborted == engine.submitted[0].seq_ids
    assert counted(services, "requests_total", endpoint="chat", outcome="client_closed") == 1
    assert counted(services, "streams_open") == 0
    assert services.drain.open_requests == 0


async def test_leaving_while_the_engine_has_not_accepted() -> None:
    engine = FakeEngine()
    engine.accepting.clear()
    connection = post(toy_app(engine), CHAT, chat())
    await engine.until(lambda: bool(engine.submitted))
    connection.leave()
    await connection.end()
    assert engine.aborted == engine.submitted[0].seq_ids


async def test_leaving_while_the_body_is_sent() -> None:
    engine = FakeEngine()
    services = toy_services(engine)
    connection = Connection(create_app(services), "POST", CHAT, JSON)
    connection.send_body(b'{"model"', more=True)
    connection.leave()
    await connection.end()
    assert engine.submitted == []
    assert counted(services, "requests_total", endpoint="chat", outcome="client_closed") == 1


async def test_cancelling_the_handler_aborts_too() -> None:
    engine = FakeEngine(automatic=False)
    connection = post(toy_app(engine), CHAT, chat(stream=True))
    await engine.until(lambda: bool(engine.playing))
    engine.step()
    await connection.until(lambda c: len(c.sent) > 1)
    connection.task.cancel()
    await connection.settled()
    assert engine.aborted == engine.submitted[0].seq_ids


async def test_leaving_after_the_end_is_no_loss() -> None:
    services = toy_services()
    connection = post(create_app(services), CHAT, chat(stream=True))
    await connection.until(lambda c: b"[DONE]" in c.body)
    connection.leave()
    await connection.end()
    assert counted(services, "requests_total", endpoint="chat", outcome="stop") == 1


async def test_a_reader_over_the_cap_is_ended_with_an_error() -> None:
    engine = FakeEngine(script=lambda submit, choice: Script([[120] * 50] * 100), automatic=False)
    services = toy_services(engine, slow_reader_bytes=1000)
    connection = post(create_app(services), CHAT, chat(stream=True))
    await engine.until(lambda: bool(engine.playing))
    connection.reading.clear()
    for _ in range(30):
        engine.step()
    assert engine.aborted == engine.submitted[0].seq_ids
    connection.reading.set()
    await connection.end()
    *chunks, last = events(connection.body)
    assert last["error"]["code"] == "slow_reader"
    assert sum(len(chunk["choices"][0]["delta"].get("content", "")) for chunk in chunks) <= 1100
    assert counted(services, "requests_total", endpoint="chat", outcome="slow_reader") == 1
    assert counted(services, "aborts_total", cause="slow_reader") == 1


async def test_a_reader_that_takes_nothing_any_more() -> None:
    engine = FakeEngine(automatic=False)
    services = toy_services(engine, send_timeout_s=0.001)
    connection = post(create_app(services), CHAT, chat(stream=True))
    await engine.until(lambda: bool(engine.playing))
    engine.step()
    await connection.until(lambda c: len(c.sent) > 1)
    connection.reading.clear()
    engine.step()
    await connection.end()
    assert engine.aborted == engine.submitted[0].seq_ids
    assert counted(services, "requests_total", endpoint="chat", outcome="slow_reader") == 1


async def test_a_whole_answer_that_nobody_takes() -> None:
    engine = FakeEngine(automatic=False)
    services = toy_services(engine, send_timeout_s=0.001)
    connection = post(create_app(services), CHAT, chat())
    await engine.until(lambda: bool(engine.playing))
    connection.reading.clear()
    while engine.playing:
        engine.step()
    await connection.end()
    assert counted(services, "requests_total", endpoint="chat", outcome="slow_reader") == 1
    assert services.drain.open_requests == 0


async def test_a_body_over_the_limit_is_not_read_to_its_end() -> None:
    connection = Connection(toy_app(max_body_bytes=100), "POST", CHAT, JSON)
    connection.send_body(b"x" * 60, more=True)
    connection.send_body(b"x" * 60, more=True)
    await connection.end()
    assert connection.status == 413
    assert connection.headers["connection"] == "close"
    assert b"100 bytes" in connection.body


async def test_a_stated_length_over_the_limit_is_refused_unread() -> None:
    connection = Connection(toy_app(max_body_bytes=100), "POST", CHAT, {**JSON, "content-length": "101"})
    await connection.end()
    assert connection.status == 413


async def test_a_body_that_never_ends() -> None:
    connection = Connection(toy_app(body_timeout_s=0.001), "POST", CHAT, JSON)
    connection.send_body(b"{", more=True)
    await connection.end()
    assert connection.status == 408
