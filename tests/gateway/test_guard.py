"""The door, over the app: who is let in, how much they may ask for, and how the real clients take a refusal."""

import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import anthropic
import httpx
import httpx2
import msgspec
import openai
import pytest
from starlette.types import ASGIApp

from gateway.http.app import create_app
from gateway.http.guard import is_limited
from gateway.http.keys import Keys
from gateway.http.ratelimit import RateLimits
from gateway.services import Services
from scheduler.types import Rejected
from tests.fixtures.fakes import MODEL, Clock, Connection, FakeEngine, Script, client_of, counted, post, toy_services

MESSAGES: list[Any] = [{"role": "user", "content": "hi"}]
CHAT = {"model": MODEL, "messages": MESSAGES}  # 5 tokens, and 6 of answer: Hello and its end
RIGHT = {"authorization": "Bearer sk-one"}
Guarded = Callable[..., Services]


@pytest.fixture
def guarded(tmp_path: Path) -> Guarded:
    """Services with these lines of keys, on a clock that stands still."""

    def build(*lines: str, engine: FakeEngine | None = None, **settings: Any) -> Services:
        services = replace(toy_services(engine, **settings), clock=Clock(step_s=0))
        if not lines:
            return services
        (tmp_path / "keys.txt").write_text("\n".join(lines))
        return replace(services, keys=Keys("", tmp_path / "keys.txt", services.clock))

    return build


def advance(services: Services, seconds: float) -> None:
    assert isinstance(services.clock, Clock)
    services.clock.now += seconds


def limited(services: Services, kind: str) -> float | None:
    return services.metrics.registry.get_sample_value("headrace_rate_limited_total", {"kind": kind})


# keys


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({}, "This server asks for an API key."),
        ({"authorization": "Basic c2s6b25l"}, "This server asks for an API key."),
        ({"authorization": "Bearer"}, "The API key is not one of this server's."),
        ({"authorization": "Bearer sk-two"}, "The API key is not one of this server's."),
        ({"x-api-key": "sk-two"}, "The API key is not one of this server's."),
    ],
)
async def test_without_a_right_key_there_is_an_openai_error(
    guarded: Guarded, headers: dict[str, str], message: str
) -> None:
    services = guarded("sk-one")
    async with client_of(services) as client:
        answer = await client.post("/v1/chat/completions", json=CHAT, headers=headers)
    error = answer.json()["error"]
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "invalid_api_key", None)
    assert error["message"].startswith(message)
    assert "x-request-id" in answer.headers
    assert services.metrics.registry.get_sample_value("headrace_rejections_total", {"reason": "unauthorized"}) == 1


@pytest.mark.parametrize(
    "headers",
    [
        RIGHT,
        {"authorization": "bearer   sk-one"},
        {"x-api-key": "sk-one"},
        {"authorization": "Bearer none", "x-api-key": "sk-one"},
    ],
)
async def test_a_right_key_opens(guarded: Guarded, headers: dict[str, str]) -> None:
    async with client_of(guarded("sk-one")) as client:
        assert (await client.post("/v1/chat/completions", json=CHAT, headers=headers)).status_code == 200


async def test_every_path_but_the_probes_and_the_empty_page_asks_for_a_key(guarded: Guarded) -> None:
    app = create_app(guarded("sk-one"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
        paths = [route.path.replace("{model:path}", MODEL) for route in app.routes]
        open_paths = [path for path in [*paths, "/nowhere"] if (await client.get(path)).status_code != 401]
        assert sorted(open_paths) == ["/", "/chatpage/{file}", "/dashboard", "/dashboard/{file}", "/health", "/ready"]
        assert (await client.get("/nowhere", headers=RIGHT)).status_code == 404


@pytest.mark.parametrize(("metrics_auth", "status"), [(True, 401), (False, 200)])
async def test_metrics_have_their_own_switch(guarded: Guarded, metrics_auth: bool, status: int) -> None:
    async with client_of(guarded("sk-one", metrics_auth=metrics_auth)) as client:
        assert (await client.get("/metrics")).status_code == status
        assert (await client.get("/metrics", headers=RIGHT)).status_code == 200


async def test_anthropic_paths_get_anthropics_shape(guarded: Guarded) -> None:
    async with client_of(guarded("sk-one rpm=1")) as client:
        for path in ("/v1/messages", "/v1/messages/count_tokens"):
            answer = await client.post(path, json={})
            assert answer.json().keys() == {"type", "error", "request_id"}
            assert (answer.json()["type"], answer.json()["error"]["type"]) == ("error", "authentication_error")
        await client.post("/v1/messages", json={}, headers=RIGHT)
        answer = await client.post("/v1/messages", json={}, headers=RIGHT)
        assert (answer.status_code, answer.json()["error"]["type"]) == (429, "rate_limit_error")


async def test_browsers_ask_for_permission_without_a_key_and_may_read_refusals(guarded: Guarded) -> None:
    origin = {"origin": "https://page.example"}
    asking = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    async with client_of(guarded("sk-one", allow_origins=("https://page.example",))) as client:
        permission = await client.options("/v1/chat/completions", headers={**origin, **asking})
        refusal = await client.post("/v1/chat/completions", json=CHAT, headers=origin)
    assert permission.status_code == 200
    assert "authorization" in permission.headers["access-control-allow-headers"]
    assert (refusal.status_code, refusal.headers["access-control-allow-origin"]) == (401, "https://page.example")
    assert "x-ratelimit-remaining-tokens" in refusal.headers["access-control-expose-headers"]


async def test_without_cors_a_preflight_is_a_request_like_any_other(guarded: Guarded) -> None:
    async with client_of(guarded("sk-one")) as client:
        assert (await client.options("/v1/models", headers={"origin": "https://page.example"})).status_code == 401


async def test_the_log_has_the_name_and_never_the_key(guarded: Guarded, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with client_of(guarded("sk-one name=team-a")) as client:
        await client.post("/v1/chat/completions", json=CHAT, headers=RIGHT)
        await client.post("/v1/chat/completions", json=CHAT, headers={"authorization": "Bearer sk-wrong"})
    logged = [record.getMessage() for record in caplog.records if record.name == "headrace.access"]
    lines = [msgspec.json.decode(line) for line in logged]
    assert [(line["status"], line["outcome"], line.get("key")) for line in lines] == [
        (200, "stop", "team-a"),
        (401, "invalid", None),
    ]
    assert "sk-" not in caplog.text


# limits


async def test_limits_are_told_in_openais_headers(guarded: Guarded) -> None:
    async with client_of(guarded("sk-one rpm=60 tpm=6000")) as client:
        answer = await client.post("/v1/chat/completions", json=CHAT, headers=RIGHT)
    assert {name: value for name, value in answer.headers.items() if name.startswith("x-ratelimit")} == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "6000",
        "x-ratelimit-remaining-tokens": "5989",
        "x-ratelimit-reset-tokens": "110ms",
    }


async def test_beyond_the_limit_there_is_a_429_that_says_when_to_come_back(guarded: Guarded) -> None:
    services = guarded("sk-one rpm=2")
    async with client_of(services) as client:
        for _ in range(2):
            assert (await client.post("/v1/chat/completions", json=CHAT, headers=RIGHT)).status_code == 200
        refused = await client.post("/v1/chat/completions", json=CHAT, headers=RIGHT)
        assert refused.status_code == 429
        error = refused.json()["error"]
        assert (error["type"], error["code"]) == ("rate_limit_exceeded", "rate_limit_exceeded")
        assert error["message"] == "The limit of 2 requests a minute is reached. There is room again in 30s."
        assert refused.headers["retry-after-ms"] == "35000"  # 30 s and a third of the spread
        assert refused.headers["retry-after"] == "35"
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        assert limited(services, "requests") == 1
        advance(services, 30)
        assert (await client.post("/v1/chat/completions", json=CHAT, headers=RIGHT)).status_code == 200


@pytest.mark.parametrize(
    ("tpm", "wait_ms"),
    [(10, (12_000, 18_000)), (1, (660_000, 990_000)), (6, (60_000, 90_000)), (5, (84_000, 120_000))],
)
async def test_a_wait_is_spread_upwards_but_not_over_what_clients_bear(
    guarded: Guarded, tpm: int, wait_ms: tuple[int, int]
) -> None:
    seen = []
    for jitter in (0.0, 1.0):
        services = replace(
            guarded(f"sk-one tpm={tpm}"), random_bits=lambda bits, jitter=jitter: int(jitter * ((1 << bits) - 1))
        )
        async with client_of(services) as client:
            await client.post("/v1/chat/completions", json=CHAT, headers=RIGHT)
            refused = await client.post("/v1/chat/completions", json=CHAT, headers=RIGHT)
            seen.append(int(refused.headers["retry-after-ms"]))
    assert seen == [pytest.approx(each, rel=1e-4) for each in wait_ms]


async def test_keys_have_accounts_of_their_own_and_defaults_in_common(guarded: Guarded) -> None:
    async with client_of(guarded("sk-one", "sk-two", "sk-free rpm=0", rate_limits=RateLimits(rpm=1))) as client:

        async def statuses(secret: str) -> list[int]:
            headers = {"x-api-key": secret}
            return [(await client.post("/v1/completions", json={}, headers=headers)).status_code for _ in range(2)]

        assert await statuses("sk-one") == [400, 429]
        assert await statuses("sk-two") == [400, 429]
        assert await statuses("sk-free") == [400, 400]


async def test_without_keys_all_clients_share_one_account(guarded: Guarded) -> None:
    async with client_of(guarded(rate_limits=RateLimits(rpm=1))) as client:
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200
        assert (await client.post("/v1/chat/completions", json=CHAT, headers=RIGHT)).status_code == 429


async def test_only_generation_is_limited(guarded: Guarded) -> None:
    async with client_of(guarded("sk-one rpm=1")) as client:
        await client.post("/v1/chat/completions", json=CHAT, headers=RIGHT)
        for path in ("/v1/models", "/metrics", "/version", "/health", "/ready"):
            answer = await client.get(path, headers=RIGHT)
            assert answer.status_code == 200 and "x-ratelimit-limit-requests" not in answer.headers
        assert (await client.post("/tokenize", json={"prompt": "hi"}, headers=RIGHT)).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "limited"),
    [
        ("POST", "/v1/chat/completions", True),
        ("POST", "/v1/messages", True),
        ("POST", "/v1/responses", True),
        ("POST", "/v1/of_next_year", True),
        ("GET", "/v1/responses/resp_1", False),
        ("POST", "/v1/responses/resp_1/cancel", False),
        ("POST", "/v1/responses/input_tokens", False),
        ("POST", "/v1/chat/completions/render", False),
        ("POST", "/v1/messages/count_tokens", False),
        ("POST", "/tokenize", False),
        ("POST", "/health", False),
    ],
)
def test_what_is_limited(method: str, path: str, limited: bool) -> None:
    assert is_limited({"method": method, "path": path}) is limited


async def test_requests_at_the_same_time(guarded: Guarded) -> None:
    engine = FakeEngine(automatic=False)
    services = guarded("sk-one concurrency=1", engine=engine)
    app = create_app(services)
    first = asked(app)
    await engine.until(lambda: len(engine.playing) == 1)
    refused = asked(app)
    await refused.end()
    assert (refused.status, limited(services, "concurrency")) == (429, 1)
    first.leave()
    await first.end()
    engine.automatic = True
    last = asked(app)
    await last.end()
    assert last.status == 200


def asked(app: ASGIApp, **fields: Any) -> Connection:
    return post(app, "/v1/chat/completions", {**CHAT, **fields}, **RIGHT)


async def test_a_stream_is_charged_while_it_runs(guarded: Guarded) -> None:
    engine = FakeEngine(automatic=False, script=lambda submit, choice: Script.of("abc"))
    app = create_app(guarded("sk-one tpm=7", engine=engine))
    stream = asked(app, stream=True)
    await engine.until(lambda: len(engine.playing) == 1)
    assert len(engine.submitted[0].prompt) == 5
    engine.step()
    await stream.until(lambda connection: b'"content":"a"' in connection.body)
    assert stream.headers["x-ratelimit-remaining-tokens"] == "1"
    engine.step()
    refused = asked(app)
    await refused.end()
    assert refused.status == 429
    assert refused.headers["x-ratelimit-remaining-tokens"] == "0"
    while engine.playing:
        engine.step()
    await stream.end()
    assert stream.status == 200


async def test_what_the_engine_refuses_costs_no_tokens(guarded: Guarded) -> None:
    engine = FakeEngine(refusal=lambda submit: Rejected("queue_full", "The queue is full.", 2.0))
    services = guarded("sk-one name=team rpm=10 tpm=10", engine=engine)
    async with client_of(services) as client:
        for left in ("9", "8"):
            answer = await client.post("/v1/chat/completions", json=CHAT, headers=RIGHT)
            assert answer.json()["error"]["code"] == "queue_full"
            assert answer.headers["x-ratelimit-remaining-requests"] == left
    assert counted(services, "tenant_requests_total", key="team") == 2
    assert counted(services, "tenant_prompt_tokens_total", key="team") == 0


async def test_who_leaves_pays_for_the_prompt(guarded: Guarded) -> None:
    engine = FakeEngine(automatic=False)
    app = create_app(guarded("sk-one tpm=5", engine=engine))
    first = asked(app)
    await engine.until(lambda: len(engine.playing) == 1)
    first.leave()
    await first.end()
    second = asked(app)
    await second.end()
    assert second.status == 429


# the real clients

Connect = Callable[..., openai.AsyncOpenAI]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    clients = []

    def build(services: Services, key: str) -> openai.AsyncOpenAI:
        http_client = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=create_app(services)))
        clients.append(
            openai.AsyncOpenAI(base_url="http://test/v1", api_key=key, http_client=http_client, max_retries=0)
        )
        return clients[-1]

    yield build
    for client in clients:
        await client.close()


async def test_openais_client_is_told_of_a_wrong_key(guarded: Guarded, connect: Connect) -> None:
    with pytest.raises(openai.AuthenticationError) as refused:
        await connect(guarded("sk-one"), "sk-two").models.list()
    assert refused.value.code == "invalid_api_key"


async def test_openais_client_is_told_of_a_limit(guarded: Guarded, connect: Connect) -> None:
    client = connect(guarded("sk-one rpm=1"), "sk-one")
    raw = await client.chat.completions.with_raw_response.create(model=MODEL, messages=MESSAGES)
    assert raw.headers["x-ratelimit-remaining-requests"] == "0"
    with pytest.raises(openai.RateLimitError) as refused:
        await client.chat.completions.create(model=MODEL, messages=MESSAGES)
    assert refused.value.code == "rate_limit_exceeded"
    assert refused.value.response.headers["x-ratelimit-reset-requests"] == "1m0s"
    assert 60 <= float(refused.value.response.headers["retry-after"]) <= 90


async def test_anthropics_client_is_told_of_a_wrong_key(guarded: Guarded) -> None:
    transport = httpx2.ASGITransport(app=create_app(guarded("sk-one")))
    async with anthropic.AsyncAnthropic(
        base_url="http://test", api_key="sk-two", http_client=httpx2.AsyncClient(transport=transport), max_retries=0
    ) as client:
        with pytest.raises(anthropic.AuthenticationError):
            await client.messages.create(model=MODEL, max_tokens=1, messages=[{"role": "user", "content": "hi"}])
