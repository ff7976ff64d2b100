"""What answers below /dashboard: files that anybody may have, and events for those with a key."""

import re

import httpx
import msgspec
import pytest

from gateway.dashboard.feed import MAX_VIEWERS
from gateway.dashboard.files import FOLDER, PAGE, PARTS
from gateway.http.app import create_app
from gateway.http.keys import Keys
from gateway.services import Services
from tests.fixtures.fakes import Connection, FakeEngine, client_of, events, toy_services
from tests.gateway.test_dashboard_feed import snapshot

KEY = "sk-secret"
PATHS = ["/dashboard", *(f"/dashboard/{name}" for name in PARTS)]


def looked_at(**settings: object) -> Services:
    return toy_services(FakeEngine(snapshot=snapshot), **settings)


def with_keys(**settings: object) -> Services:
    from dataclasses import replace

    return replace(looked_at(**settings), keys=Keys(KEY, None, lambda: 0.0))


def test_every_file_is_served_and_nothing_else() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {PAGE, *PARTS}


@pytest.mark.parametrize("path", PATHS)
async def test_files_are_strict_about_where_things_come_from(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path)
    assert answer.status_code == 200 and answer.text
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy and "http" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    kind = {"css": "text/css", "js": "text/javascript"}.get(path.rpartition(".")[2], "text/html")
    assert answer.headers["content-type"].startswith(kind)
    named = set(re.findall(r"https?://[^\s'\"]+", answer.text))
    assert named <= {"http://www.w3.org/2000/svg"}  # a name, which nobody fetches


async def test_a_file_that_has_not_changed_is_not_sent_again(client: httpx.AsyncClient) -> None:
    first = await client.get("/dashboard")
    again = await client.get("/dashboard", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    assert (await client.get("/dashboard", headers={"if-none-match": '"other"'})).status_code == 200


@pytest.mark.parametrize("name", ["nothing.js", PAGE, "..%2f..%2fservices.py", "%2e%2e", "a/b", ""])
async def test_there_are_no_other_files(client: httpx.AsyncClient, name: str) -> None:
    answer = await client.get(f"/dashboard/{name}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


async def test_events_until_the_client_leaves() -> None:
    services = looked_at()
    connection = Connection(create_app(services), "GET", "/dashboard/events")
    await connection.until(lambda c: b"\n\n" in c.body)
    assert connection.headers["content-type"].startswith("text/event-stream")
    (event, *_) = events(connection.body)
    assert event["model"] == "toy" and event["engines"][0]["blocks"]["total"] == 8
    connection.leave()
    await connection.end()
    assert services.drain.open_requests == 0


async def test_head_begins_no_stream() -> None:
    services = looked_at()
    async with client_of(services) as client:
        answer = await client.head("/dashboard/events")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream")
    assert isinstance(services.engine, FakeEngine) and services.engine.watches == []


@pytest.mark.parametrize("metrics_auth", [True, False])
@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer wrong"}])
async def test_events_ask_for_a_key(metrics_auth: bool, headers: dict[str, str]) -> None:
    services = with_keys(metrics_auth=metrics_auth)
    async with client_of(services) as client:
        answer = await client.get("/dashboard/events", headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        assert [(await client.get(path)).status_code for path in PATHS] == [200] * len(PATHS)
    assert isinstance(services.engine, FakeEngine) and services.engine.watches == []


async def test_events_for_who_has_one() -> None:
    app = create_app(with_keys())
    connection = Connection(app, "GET", "/dashboard/events", {"authorization": f"Bearer {KEY}"})
    await connection.until(lambda c: b"\n\n" in c.body)
    connection.leave()
    await connection.end()
    assert connection.status == 200


async def test_as_many_may_look_as_may_and_then_another() -> None:
    app = create_app(looked_at())
    viewers = [Connection(app, "GET", "/dashboard/events") for _ in range(MAX_VIEWERS)]
    for viewer in viewers:
        await viewer.until(lambda c: len(c.sent) > 0)
    refused = Connection(app, "GET", "/dashboard/events")
    await refused.end()
    assert refused.status == 503 and refused.headers["retry-after"]
    assert msgspec.json.decode(refused.body)["error"]["code"] == "too_many_viewers"
    viewers[0].leave()
    await viewers[0].end()
    another = Connection(app, "GET", "/dashboard/events")
    await another.until(lambda c: b"\n\n" in c.body)
    for viewer in (*viewers[1:], another):
        viewer.leave()
        await viewer.end()


async def test_nobody_may_look_while_the_server_drains() -> None:
    services = looked_at()
    services.drain.draining = True
    async with client_of(services) as client:
        answer = await client.get("/dashboard/events")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")


async def test_a_client_that_reads_nothing_is_let_go() -> None:
    services = looked_at(send_timeout_s=0.05)
    connection = Connection(create_app(services), "GET", "/dashboard/events")
    await connection.until(lambda c: b"\n\n" in c.body)
    connection.reading.clear()
    await connection.end()
    assert services.drain.open_requests == 0
