"""Responses that run on when their request has been answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from starlette.types import ASGIApp

from gateway.http.app import create_app
from gateway.http.keys import Keys
from gateway.http.ratelimit import RateLimits
from gateway.services import Services
from scheduler.types import Rejected
from tests.fixtures.fakes import DEADLINE_S, Clock, Connection, FakeEngine, Script, post
from tests.gateway.responses_api import HELLO, services_of

BODY = {**HELLO, "background": True}


async def answered(connection: Connection) -> Any:
    await connection.end()
    return msgspec.json.decode(connection.body)


async def got(app: ASGIApp, response_id: str, method: str = "GET", path: str = "") -> Any:
    return await answered(Connection(app, method, f"/v1/responses/{response_id}{path}"))


async def started(app: ASGIApp, **fields: Any) -> Any:
    return await answered(post(app, "/v1/responses", {**BODY, **fields}))


async def until_idle(services: Services) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while services.drain.open_requests:
            await asyncio.sleep(0)


async def until(app: ASGIApp, response_id: str, is_so: Callable[[Any], bool]) -> Any:
    async with asyncio.timeout(DEADLINE_S):
        while not is_so(found := await got(app, response_id)):
            pass
    return found


def waiting() -> FakeEngine:
    return FakeEngine(automatic=False)


async def test_it_is_queued_then_runs_then_is_complete() -> None:
    engine = waiting()
    app = create_app(services_of(engine))
    response = await started(app)
    assert (response["status"], response["background"], response["output"]) == ("queued", True, [])
    assert (await got(app, response["id"]))["status"] == "queued"
    engine.step()
    await until(app, response["id"], lambda found: found["status"] == "in_progress")
    for _ in "ello.":
        engine.step()
    ended = await until(app, response["id"], lambda found: found["status"] == "completed")
    assert ended["output"][0]["content"][0]["text"] == "Hello"
    assert ended["usage"]["output_tokens"] == 6


async def test_it_is_cancelled_once_and_for_all() -> None:
    engine = waiting()
    services = services_of(engine)
    app = create_app(services)
    response = await started(app)
    for _ in range(2):
        assert (await got(app, response["id"], "POST", "/cancel"))["status"] == "cancelled"
    await until_idle(services)
    assert engine.aborted
    assert (await got(app, response["id"]))["status"] == "cancelled"
    value = services.metrics.registry.get_sample_value
    assert value("headrace_requests_total", {"endpoint": "background", "outcome": "cancelled"}) == 1


async def test_what_has_ended_stays_as_it_is_when_it_is_cancelled() -> None:
    services = services_of()
    app = create_app(services)
    response = await started(app)
    await until_idle(services)
    assert (await got(app, response["id"], "POST", "/cancel"))["status"] == "completed"


async def test_only_what_runs_in_the_background_can_be_cancelled() -> None:
    app = create_app(services_of())
    response = await answered(post(app, "/v1/responses", HELLO))
    refused = Connection(app, "POST", f"/v1/responses/{response['id']}/cancel")
    await refused.end()
    assert refused.status == 400


async def test_what_is_deleted_does_not_come_back() -> None:
    engine = waiting()
    services = services_of(engine)
    app = create_app(services)
    response = await started(app)
    engine.step()
    assert (await got(app, response["id"], "DELETE"))["deleted"] is True
    await until_idle(services)
    assert engine.aborted
    assert (await got(app, response["id"]))["error"]["code"] == "response_not_found"


async def test_a_failure_is_kept() -> None:
    services = services_of(FakeEngine(script=lambda submit, choice: Script([[104], []], "error")))
    app = create_app(services)
    response = await started(app)
    await until_idle(services)
    failed = await got(app, response["id"])
    assert (failed["status"], failed["error"]["code"]) == ("failed", "server_error")


async def test_a_refusal_of_the_engine_has_a_status() -> None:
    services = services_of(FakeEngine(refusal=lambda submit: Rejected("queue_full", "full", 1.0)))
    asking = post(create_app(services), "/v1/responses", BODY)
    await asking.end()
    assert asking.status == 429


async def test_so_many_run_and_no_more() -> None:
    engine = waiting()
    services = services_of(engine, max_background=2)
    app = create_app(services)
    first = await started(app)
    await started(app)
    refused = post(app, "/v1/responses", BODY)
    await refused.end()
    assert (refused.status, refused.headers.get("retry-after")) == (429, "2")
    await got(app, first["id"], "POST", "/cancel")
    await until(app, first["id"], lambda found: services.drain.open_requests < 2)
    assert (await started(app))["status"] == "queued"


async def test_one_key_does_not_keep_the_others_out(tmp_path: Path) -> None:
    engine = waiting()
    file = tmp_path / "keys.txt"
    file.write_text("key-of-two\n")
    keys = Keys("key-of-one", file, Clock())
    app = create_app(replace(services_of(engine, max_background=2), keys=keys))

    async def status_for(key: str) -> int:
        asking = post(app, "/v1/responses", BODY, authorization=f"Bearer {key}")
        await asking.end()
        return asking.status

    assert [await status_for(key) for key in ("key-of-one", "key-of-one", "key-of-two")] == [200, 429, 200]


async def test_it_may_not_be_gone_on_from_before_it_has_ended() -> None:
    app = create_app(services_of(waiting()))
    response = await started(app)
    asking = post(app, "/v1/responses", {**HELLO, "previous_response_id": response["id"]})
    await asking.end()
    assert asking.status == 400


async def test_who_leaves_before_the_answer_starts_nothing() -> None:
    engine = waiting()
    engine.accepting.clear()
    asking = post(create_app(services_of(engine)), "/v1/responses", BODY)
    await engine.until(lambda: bool(engine.submitted))
    asking.leave()
    await asking.end()
    assert engine.aborted and not engine.playing


async def test_a_drain_waits_for_it() -> None:
    engine = waiting()
    services = services_of(engine)
    app = create_app(services)
    response = await started(app)
    draining = asyncio.create_task(services.drain.run(DEADLINE_S))
    for _ in "Hello.":
        engine.step()
    assert await draining is True
    assert (await got(app, response["id"]))["status"] == "completed"


async def test_a_drain_without_time_ends_it() -> None:
    engine = waiting()
    services = services_of(engine)
    app = create_app(services)
    response = await started(app)
    assert await services.drain.run(0.0, DEADLINE_S) is False
    assert services.drain.open_requests == 0
    failed = await got(app, response["id"])
    assert (failed["status"], "shutting down" in failed["error"]["message"]) == ("failed", True)
    assert engine.aborted


@pytest.mark.parametrize("strict", [True, False])
async def test_strictness_holds_here_too(strict: bool) -> None:
    asking = post(create_app(services_of(strict=strict)), "/v1/responses", {**BODY, "user": "u"})
    await asking.end()
    assert asking.status == (400 if strict else 200)


async def test_it_counts_against_the_limits_until_it_ends() -> None:
    engine = waiting()
    limits = RateLimits(tpm=1000, concurrency=1)
    services = replace(services_of(engine, rate_limits=limits), clock=Clock(step_s=0))
    app = create_app(services)
    response = await started(app)
    refused = post(app, "/v1/responses", BODY)
    await refused.end()
    assert (refused.status, "1 requests at the same time" in refused.body.decode()) == (429, True)
    for _ in "Hello.":
        engine.step()
    await until(app, response["id"], lambda found: found["status"] == "completed")
    await until_idle(services)
    after = post(app, "/v1/responses", {**BODY, "temperature": 3})
    await after.end()
    assert after.status == 400
    assert after.headers["x-ratelimit-remaining-tokens"] == str(1000 - 5 - 6)
