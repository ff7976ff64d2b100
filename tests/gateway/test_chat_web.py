"""nanochat's web server on our engine: its objects, defaults, limits, health and stats."""

import asyncio
import json
from dataclasses import replace
from typing import Any

import httpx
import pytest

from gateway.assembly import http_settings
from gateway.chat_web.limits import NANOCHAT
from gateway.config import PRESETS, load_config
from gateway.http.app import create_app
from gateway.http.keys import Keys
from gateway.services import Services, WebDefaults
from scheduler.protocol import EngineStats
from scheduler.types import Rejected
from tests.fixtures.chat_web import Page, as_the_page_asks, said
from tests.fixtures.fakes import (
    ASSISTANT,
    EOS,
    MODEL,
    USER,
    Connection,
    FakeEngine,
    Script,
    client_of,
    events,
    post,
    toy_model,
    toy_ready,
    toy_services,
)
from tests.fixtures.server import Metrics

PATH = "/chat/completions"
HELLO = {"messages": said("Hi")}
LONG = 1 << 17  # tokens of context: more than the limits let in
IDLE = EngineStats(0, 0, 0, 0, 0, 100, 0, 0, 0, 0, 0, 0)


def saying(text: str, **changes: Any) -> FakeEngine:
    return FakeEngine(lambda submit, choice: Script.of(text), **changes)


async def ask(engine: FakeEngine, body: dict[str, Any], **settings: Any) -> httpx.Response:
    async with client_of(toy_services(engine, **settings)) as client:
        return await client.post(PATH, json=body)


async def params(body: dict[str, Any], services: Services) -> Any:
    """What the engine was asked for."""
    async with client_of(services) as client:
        answer = await client.post(PATH, json=body)
    assert answer.status_code == 200, answer.text
    assert isinstance(services.engine, FakeEngine)
    return services.engine.submitted[-1].params


# the stream


async def test_the_bytes_of_a_stream_are_those_of_nanochats_server() -> None:
    answer = await ask(saying('H"é\n'), HELLO)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.content.decode() == (
        'data: {"token": "H", "gpu": 0}\n\n'
        'data: {"token": "\\"", "gpu": 0}\n\n'
        'data: {"token": "é", "gpu": 0}\n\n'
        'data: {"token": "\\n", "gpu": 0}\n\n'
        'data: {"done": true}\n\n'
    )


async def test_each_piece_names_the_replica_it_comes_from() -> None:
    engine = saying("ab")
    engine.number = 3
    assert [event.get("gpu") for event in events((await ask(engine, HELLO)).content)] == [3, 3, None]


async def test_its_page_reads_the_answer() -> None:
    text = "Ünïcode, \U0001f600 and 漢字: data: {}\n\ndata: [DONE]"
    app = create_app(toy_services(saying(text)))
    connection = post(app, PATH, as_the_page_asks("Hi", "Hello", "Go on"))
    await connection.end()
    page = Page().read(message.get("body", b"") for message in connection.sent[1:])
    assert (page.answer, page.is_done) == (text, True)
    assert all(found.keys() == {"token", "gpu"} for found in page.objects[:-1])


async def test_characters_are_whole_whatever_the_tokens_are() -> None:
    engine = FakeEngine(lambda submit, choice: Script([[byte] for byte in "\U0001f600é".encode()[:-1]], "length"))
    answer = await ask(engine, HELLO)
    assert events(answer.content) == [{"token": "\U0001f600", "gpu": 0}, {"done": True}]


async def test_the_prompt_is_the_conversation_by_the_models_template() -> None:
    engine = saying("x")
    await ask(engine, {"messages": said("a", "b", "c")})
    a, b, c = b"abc"
    assert engine.submitted[0].prompt == [USER, a, EOS, ASSISTANT, b, EOS, USER, c, EOS, ASSISTANT]


async def test_the_models_mark_up_is_text_as_there_but_not_its_end() -> None:
    engine = FakeEngine(lambda submit, choice: Script([[65], [USER], [66], [EOS]], "stop"))
    answer = await ask(engine, HELLO)
    assert Page().read([answer.content]).answer == "A<|user|>B"


async def test_a_failure_after_the_first_token_is_an_event_and_nothing_is_done() -> None:
    engine = saying("Hello", automatic=False)
    connection = post(create_app(toy_services(engine, migration=False)), PATH, HELLO)
    await engine.until(lambda: bool(engine.playing))
    engine.step()
    await connection.until(lambda seen: b"token" in seen.body)
    engine.die("The engine died.")
    await connection.end()
    page = Page().read([connection.body])
    assert page.answer == "H" and not page.is_done
    assert page.objects[-1]["detail"] == page.objects[-1]["error"]["message"] == "The engine died."


async def test_a_client_that_leaves_frees_its_place() -> None:
    engine = saying("Hello", automatic=False)
    connection = post(create_app(toy_services(engine)), PATH, HELLO)
    await engine.until(lambda: bool(engine.playing))
    engine.step()
    await connection.until(lambda seen: b"token" in seen.body)
    connection.leave()
    await engine.until(lambda: bool(engine.aborted))
    await asyncio.wait([connection.task], timeout=10)
    assert not engine.playing


async def test_two_requests_stream_at_the_same_time() -> None:
    engine = saying("abc", automatic=False)
    app = create_app(toy_services(engine))
    both = [post(app, PATH, HELLO) for _ in range(2)]
    await engine.until(lambda: len(engine.playing) == 2)
    engine.step()
    for connection in both:
        await connection.until(lambda seen: Page().read([seen.body]).answer == "a")
    while engine.playing:
        engine.step()
    for connection in both:
        await connection.end()
        page = Page().read([connection.body])
        assert (page.answer, page.is_done) == ("abc", True)


# defaults


async def test_its_defaults() -> None:
    asked = await params(HELLO, toy_services())
    assert (asked.temperature, asked.top_k, asked.max_tokens, asked.top_p) == (0.8, 50, 512, 1.0)
    asked = await params({**HELLO, "temperature": None, "top_k": None, "max_tokens": None}, toy_services())
    assert (asked.temperature, asked.top_k, asked.max_tokens) == (0.8, 50, 512)


async def test_defaults_are_the_servers_own_where_it_was_told_others() -> None:
    asked = await params(HELLO, toy_services(web_defaults=WebDefaults(0.0, 0, 7)))
    assert (asked.temperature, asked.top_k, asked.max_tokens) == (0.0, 0, 7)


async def test_a_request_decides_over_the_defaults_and_the_models_own() -> None:
    services = toy_services(model=toy_model(sampling_defaults={"temperature": 0.1, "top_k": 3, "top_p": 0.9}))
    asked = await params(HELLO, services)
    assert (asked.temperature, asked.top_k, asked.top_p) == (0.8, 50, 0.9)
    asked = await params({**HELLO, "temperature": 0, "top_k": 0, "max_tokens": 9}, services)
    assert (asked.temperature, asked.top_k, asked.max_tokens) == (0.0, 0, 9)


async def test_numbers_may_be_texts_as_pages_fields_hold_them() -> None:
    asked = await params({**HELLO, "temperature": "0.5", "top_k": "0", "max_tokens": "9"}, toy_services())
    assert (asked.temperature, asked.top_k, asked.max_tokens) == (0.5, 0, 9)


async def test_an_answer_ends_where_the_context_does() -> None:
    services = toy_services(FakeEngine(ready=toy_ready(max_model_len=100)))
    asked = await params(as_the_page_asks("Hi"), services)
    assert asked.max_tokens == 100 - len([USER, *b"Hi", EOS, ASSISTANT])


async def test_the_parameters_in_force_are_told() -> None:
    async with client_of(toy_services()) as client:
        body = {**HELLO, "top_k": 5, "seed": 1, "messages": [{"role": "user", "content": "Hi", "name": "me"}]}
        answer = await client.post(PATH, json=body, headers={"x-headrace-explain": "1"})
    told = httpx.Response(200, text=answer.headers["x-headrace-parameters"]).json()
    assert told["top_k"] == {"value": 5, "from": "request"}
    assert told["temperature"] == {"value": 0.8, "from": "default"}
    assert told["max_tokens"] == {"value": 512, "from": "default"}
    assert answer.headers["x-headrace-ignored"] == "seed, messages[0].name"


# what is refused


def with_one(**changes: Any) -> dict[str, Any]:
    return {"messages": [{**said("Hi")[0], **changes}]}


ROLE = "Message 0 has invalid role. Must be 'user', 'assistant', or 'system'"
TOTAL = "Total conversation is too long. Maximum 32000 characters allowed"
REFUSED = [
    ({"messages": []}, "At least one message is required"),
    ({"messages": said(*["a"] * 501)}, "Too many messages. Maximum 500 messages allowed per request"),
    (with_one(content=""), "Message 0 has empty content"),
    ({"messages": said("a", "", "c")}, "Message 1 has empty content"),
    ({"messages": said("a", "b" * 8001)}, "Message 1 is too long. Maximum 8000 characters allowed per message"),
    ({"messages": said(*["a" * 8000] * 4, "a")}, TOTAL),
    (with_one(role="system"), ROLE),
    (with_one(role="tool"), ROLE),
    (with_one(role=""), ROLE),
    ({**HELLO, "temperature": -0.1}, "Temperature must be between 0.0 and 2.0"),
    ({**HELLO, "temperature": 2.1}, "Temperature must be between 0.0 and 2.0"),
    ({**HELLO, "temperature": "2.1"}, "Temperature must be between 0.0 and 2.0"),
    ({**HELLO, "top_k": -1}, "top_k must be between 0 and 200"),
    ({**HELLO, "top_k": 201}, "top_k must be between 0 and 200"),
    ({**HELLO, "max_tokens": 0}, "max_tokens must be between 1 and 4096"),
    ({**HELLO, "max_tokens": 4097}, "max_tokens must be between 1 and 4096"),
]


@pytest.mark.parametrize(("body", "detail"), REFUSED)
async def test_its_limits_are_told_as_it_did(body: dict[str, Any], detail: str) -> None:
    engine = FakeEngine()
    answer = await ask(engine, body)
    assert (answer.status_code, answer.json()["detail"], engine.submitted) == (400, detail, [])
    assert answer.json()["error"]["message"] == detail and answer.json()["error"]["param"]


@pytest.mark.parametrize(
    "body",
    [
        {"messages": said(*["a" * 64] * 500)},
        {"messages": said(*["é" * 8000] * 4)},
        {**HELLO, "temperature": 0.0, "top_k": 0, "max_tokens": 1},
        {**HELLO, "temperature": 2, "top_k": 200, "max_tokens": 4096},
    ],
)
async def test_at_its_limits_is_within_them(body: dict[str, Any]) -> None:
    services = toy_services(FakeEngine(ready=toy_ready(max_model_len=LONG)), toy_model(context_length=LONG))
    asked = await params(body, services)
    assert asked.max_tokens == body.get("max_tokens", 512)


@pytest.mark.parametrize(
    ("body", "where"),
    [
        (b"{}", ["body", "messages"]),
        (b"not json", ["body"]),
        (b'{"messages": "Hi"}', ["body", "messages"]),
        (b'{"messages": [{"role": "user"}]}', ["body", "messages", 0, "content"]),
        (b'{"messages": [{"role": "user", "content": ["Hi"]}]}', ["body", "messages", 0, "content"]),
        (b'{"messages": [{"role": "user", "content": "Hi"}], "top_k": "many"}', ["body", "top_k"]),
        (b'{"messages": [{"role": "user", "content": "Hi"}], "max_tokens": "9.5"}', ["body", "max_tokens"]),
        (b'{"messages": [], "temperature": []}', ["body", "temperature"]),
    ],
)
async def test_what_is_no_request_is_a_422_that_says_where(client: httpx.AsyncClient, body: bytes, where: Any) -> None:
    answer = await client.post(PATH, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    (fault,) = answer.json()["detail"]
    assert fault["loc"] == where and fault["msg"] == answer.json()["error"]["message"]


def test_its_limits_are_those_of_the_preset() -> None:
    names = ("messages", "message_chars", "total_chars", "max_temperature", "max_top_k", "max_tokens")
    assert [getattr(NANOCHAT, name) for name in names] == list(PRESETS["nanochat"].values())


async def test_with_the_preset_top_k_may_still_be_0() -> None:
    settings = http_settings(load_config({"limits": "nanochat"}))
    asked = await params({**HELLO, "top_k": 0, "max_tokens": 4096}, replace(toy_services(), settings=settings))
    assert asked.top_k == 0


async def test_lower_limits_of_the_server_hold_here_too() -> None:
    low = {"max_messages": 2, "max_message_chars": 4, "max_total_chars": 6, "max_temperature": 0.5}
    low |= {"max_top_k": 20, "max_tokens_limit": 10}
    for body, detail in [
        ({"messages": said("a", "b", "c")}, "Too many messages. Maximum 2 messages allowed per request"),
        ({"messages": said("12345")}, "Message 0 is too long. Maximum 4 characters allowed per message"),
        ({"messages": said("1234", "123")}, "Total conversation is too long. Maximum 6 characters allowed"),
        ({**HELLO, "temperature": 0.6}, "Temperature must be between 0.0 and 0.5"),
        ({**HELLO, "top_k": 0}, "top_k must be between 1 and 20"),
        ({**HELLO, "max_tokens": 11}, "max_tokens must be between 1 and 10"),
    ]:
        answer = await ask(FakeEngine(), body, **low)
        assert (answer.status_code, answer.json()["detail"]) == (400, detail)
    asked = await params(HELLO, toy_services(**low))
    assert (asked.temperature, asked.top_k, asked.max_tokens) == (0.5, 20, 10)


async def test_a_conversation_that_does_not_fit_is_refused_with_the_counts() -> None:
    answer = await ask(FakeEngine(ready=toy_ready(max_model_len=100)), {"messages": said("a" * 200)})
    assert answer.status_code == 400 and "maximum context length is 100 tokens" in answer.json()["detail"]


async def test_a_model_without_a_template_is_refused_by_name() -> None:
    async with client_of(toy_services(model=toy_model(chat_template=None))) as client:
        answer = await client.post(PATH, json=HELLO)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "no_chat_template")
    assert answer.json()["detail"].startswith(f"The model '{MODEL}' has no chat template.")


async def test_strict_servers_refuse_fields_without_effect() -> None:
    answer = await ask(FakeEngine(), {**HELLO, "seed": 1}, strict=True)
    assert (answer.status_code, answer.json()["detail"]) == (400, "seed has no effect on this server.")


async def test_a_full_queue_says_so_and_when_to_come_back() -> None:
    answer = await ask(FakeEngine(refusal=lambda submit: Rejected("queue_full", "The queue is full.", 1.0)), HELLO)
    assert (answer.status_code, answer.json()["detail"]) == (429, "The queue is full.")
    assert int(answer.headers["retry-after"]) >= 1


async def test_keys_and_drains_are_told_in_its_form() -> None:
    services = toy_services()
    async with client_of(replace(services, keys=Keys("sk-one", None, services.clock))) as client:
        refused = await client.post(PATH, json=HELLO)
        answered = await client.post(PATH, json=HELLO, headers={"authorization": "Bearer sk-one"})
        assert [refused.status_code, answered.status_code] == [401, 200]
        assert (await client.get("/stats")).status_code == 401
    services.drain.draining = True
    async with client_of(services) as client:
        draining = await client.post(PATH, json=HELLO)
        wrong = await client.get(PATH)
    assert (draining.status_code, wrong.status_code) == (503, 405)
    for answer in (refused, draining, wrong):
        assert answer.json()["detail"] == answer.json()["error"]["message"]


async def test_requests_are_counted_and_have_timelines(client: httpx.AsyncClient) -> None:
    answer = await client.post(PATH, json=HELLO, headers={"x-request-id": "mine"})
    assert answer.status_code == 200
    metrics = Metrics.parse((await client.get("/metrics")).text)
    assert metrics["requests_total{endpoint=chat_web,outcome=stop}"] == 1
    assert (await client.get("/v1/requests/mine/timeline")).json()["endpoint"] == "chat_web"


async def test_conversations_are_logged_where_that_is_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "headrace")
    body = {"messages": said("a secret\nof two lines")}
    await ask(saying("The answer"), body)
    assert "secret" not in caplog.text and "The answer" not in caplog.text
    await ask(saying("The answer"), body, log_conversations=True)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "headrace.conversation"]
    assert json.loads(line) == {**body, "answer": "The answer", "gpu": 0} and "\n" not in line


# health and stats


async def test_health_and_stats_of_an_idle_server(client: httpx.AsyncClient) -> None:
    health = (await client.get("/health")).json()
    assert health == {"status": "ok", "ready": True, "num_gpus": 1, "available_workers": 1}
    stats = (await client.get("/stats")).json()
    (worker,) = stats.pop("workers")
    assert stats == {"total_workers": 1, "available_workers": 1, "busy_workers": 0}
    assert worker == {"gpu_id": 0, "device": "cpu", "running": 0, "waiting": 0, "max_running": 8, "state": "up"}


@pytest.mark.parametrize(
    ("told", "name"),
    [("cuda (NVIDIA H100)", "cuda:0"), ("cuda:1 (NVIDIA H100)", "cuda:1"), ("cpu (x86_64, 2 threads)", "cpu")],
)
async def test_a_workers_device_is_named_as_torch_does(told: str, name: str) -> None:
    async with client_of(toy_services(FakeEngine(ready=toy_ready(device=told)))) as client:
        assert (await client.get("/stats")).json()["workers"][0]["device"] == name


async def available(app: Any) -> tuple[int, int, int]:
    """As /health says, then available and busy as /stats does."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
        health, stats = [(await client.get(path)).json() for path in ("/health", "/stats")]
    return health["available_workers"], stats["available_workers"], stats["busy_workers"]


async def test_a_worker_is_busy_when_one_more_would_wait() -> None:
    engine = saying("Hello", automatic=False, ready=toy_ready(max_seqs=2), stats=IDLE)
    app = create_app(toy_services(engine))
    asked: list[Connection] = []
    for state in [(1, 1, 0), (0, 0, 1)]:
        asked.append(post(app, PATH, HELLO))
        await engine.until(lambda: len(engine.playing) == len(asked))
        assert await available(app) == state
    while engine.playing:
        engine.step()
    for connection in asked:
        await connection.end()
    assert await available(app) == (1, 1, 0)
    engine.stats = EngineStats(1, 3, 30, 100, 0, 100, 0, 0, 0, 0, 0, 0)  # the cache is full: others wait for it
    assert await available(app) == (0, 0, 1)


async def test_without_an_engine_or_while_it_drains_nothing_is_available() -> None:
    engine = FakeEngine(ready=None)
    services = toy_services(engine)
    async with client_of(services) as client:
        down = (await client.get("/health")).json()
        assert (await client.get("/stats")).json()["workers"][0]["device"] == ""
        engine.ready = toy_ready()
        services.drain.draining = True
        draining = (await client.get("/health")).json()
    assert down == draining == {"status": "ok", "ready": False, "num_gpus": 1, "available_workers": 0}
