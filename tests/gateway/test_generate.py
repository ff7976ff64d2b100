"""POST /generate over a stand-in for the engine: fields, defaults, errors, streams."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from gateway.http.app import create_app
from gateway.metrics import OUTCOMES
from gateway.services import GenerateDefaults, Services
from scheduler.protocol import Submit
from scheduler.types import Rejected
from tests.fixtures.fakes import (
    BOS,
    EOS,
    FakeEngine,
    Script,
    client_of,
    counted,
    post,
    toy_app,
    toy_model,
    toy_services,
)

PROMPT = "Hello, who are you?"


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(script=lambda submit, choice: Script.of(" I am Rose 🌹."))


@pytest.fixture
def services(engine: FakeEngine) -> Services:
    return toy_services(engine)


@pytest.fixture
async def client(services: Services) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(services) as connected:
        yield connected


async def generate(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    return await client.post("/generate", json={"prompt": PROMPT, **fields})


async def test_the_answer_is_the_prompt_and_what_follows(client: httpx.AsyncClient) -> None:
    answer = await generate(client)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json() == {"text": f"{PROMPT} I am Rose 🌹."}
    assert "x-headrace-seed" in answer.headers


async def test_a_stream_is_what_follows_as_plain_text(client: httpx.AsyncClient) -> None:
    answer = await generate(client, stream=True)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/plain; charset=utf-8")
    assert answer.text == " I am Rose 🌹."


async def test_pieces_of_a_stream_are_whole_characters(engine: FakeEngine) -> None:
    connection = post(toy_app(engine), "/generate", {"prompt": PROMPT, "stream": True})
    await connection.end()
    pieces = [message["body"].decode() for message in connection.sent[1:]]
    assert "".join(pieces) == " I am Rose 🌹."


async def test_a_stream_whose_engine_died_goes_on_without_a_word() -> None:
    """A remark would be part of the text."""
    engine = FakeEngine(script=lambda submit, choice: Script.of(" I am Rose 🌹."), automatic=False)
    connection = post(toy_app(engine), "/generate", {"prompt": PROMPT, "stream": True})
    await engine.until(lambda: bool(engine.playing))
    engine.step()
    await connection.until(lambda seen: bool(seen.body))
    engine.die(from_outside=True)
    engine.rise()
    await engine.until(lambda: bool(engine.playing))
    engine.automatic = True
    while engine.playing:
        engine.step()
    await connection.end()
    assert connection.body.decode() == " I am Rose 🌹."


async def asked(client: httpx.AsyncClient, engine: FakeEngine, **fields: Any) -> Submit:
    answer = await generate(client, **fields)
    assert answer.status_code == 200, answer.text
    return engine.submitted[-1]


async def test_without_fields_it_is_greedy_and_64_tokens_long(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    params = (await asked(client, engine)).params
    assert (params.max_tokens, params.temperature, params.stop_ids) == (64, 0.0, (EOS,))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"do_sample": True}, (1.0, 0, 1.0)),
        ({"do_sample": True, "temperature": 0.8, "top_k": 40, "top_p": 0.95}, (0.8, 40, 0.95)),
        ({"do_sample": False, "temperature": 0.8, "top_k": 40, "top_p": 0.95}, (0.0, 0, 1.0)),
        ({"temperature": 0.8}, (0.0, 0, 1.0)),
        ({"do_sample": True, "temperature": 0}, (0.0, 0, 1.0)),
        ({"do_sample": True, "top_k": -1, "top_p": 0}, (1.0, 0, 1.0)),
    ],
)
async def test_how_tokens_are_chosen(
    client: httpx.AsyncClient, engine: FakeEngine, fields: dict[str, Any], expected: tuple[float, int, float]
) -> None:
    params = (await asked(client, engine, **fields)).params
    assert (params.temperature, params.top_k, params.top_p) == expected


async def test_the_models_own_defaults_do_not_count() -> None:
    engine = FakeEngine()
    model = toy_model(sampling_defaults={"temperature": 0.3, "top_k": 7, "repetition_penalty": 1.2})
    async with client_of(toy_services(engine, model)) as client:
        params = (await asked(client, engine, do_sample=True)).params
    assert (params.temperature, params.top_k, params.repetition) == (1.0, 0, 1.0)


async def test_the_end_of_a_text_may_be_passed(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    assert (await asked(client, engine, stop_on_eos=False)).params.stop_ids == ()


async def test_the_servers_own_defaults_and_what_overrides_them(engine: FakeEngine) -> None:
    defaults = GenerateDefaults(temperature=0.5, top_k=9, top_p=0.8, stop_on_eos=False, do_sample=True)
    async with client_of(toy_services(engine, generate=defaults)) as client:
        params = (await asked(client, engine)).params
        assert (params.temperature, params.top_k, params.top_p, params.stop_ids) == (0.5, 9, 0.8, ())
        params = (await asked(client, engine, temperature=0.7, top_k=0, stop_on_eos=True)).params
        assert (params.temperature, params.top_k, params.top_p, params.stop_ids) == (0.7, 0, 0.8, (EOS,))
        assert (await asked(client, engine, do_sample=False)).params.temperature == 0.0


async def test_no_new_tokens_give_the_prompt_back(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.script = lambda submit, choice: Script([[]], "length")
    answer = await generate(client, max_new_tokens=0)
    assert answer.json() == {"text": PROMPT}


async def test_an_empty_prompt_is_the_end_of_a_text_before_it(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    assert (await asked(client, engine, prompt="")).prompt == [EOS]


async def test_a_token_that_begins_texts_is_put_before_where_the_model_wants_it(engine: FakeEngine) -> None:
    async with client_of(toy_services(engine, toy_model(add_bos=True))) as client:
        assert (await asked(client, engine, prompt="hi")).prompt == [BOS, *b"hi"]


async def test_what_nobody_asked_for_fits_beside_the_prompt(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    assert (await asked(client, engine, prompt="a" * 4090)).params.max_tokens == 6


async def test_what_nobody_asked_for_is_allowed(engine: FakeEngine) -> None:
    async with client_of(toy_services(engine, max_tokens_limit=10, max_top_k=200)) as client:
        assert (await asked(client, engine, do_sample=True)).params.max_tokens == 10
    defaults = GenerateDefaults(temperature=1.0, top_k=300)
    async with client_of(toy_services(engine, generate=defaults, max_temperature=0.7, max_top_k=200)) as client:
        params = (await asked(client, engine, do_sample=True)).params
    assert (params.temperature, params.top_k) == (0.7, 200)


@pytest.mark.parametrize(
    ("fields", "param", "code", "words"),
    [
        ({"prompt": None}, "prompt", "invalid_type", "expected str"),
        ({"prompt": ["a"]}, "prompt", "invalid_type", "expected str"),
        ({"max_new_tokens": -1}, "max_new_tokens", "value_out_of_range", "at least 0"),
        ({"max_new_tokens": "many"}, "max_new_tokens", "invalid_type", "expected int"),
        ({"temperature": -0.5}, "temperature", "value_out_of_range", "between 0 and 2"),
        ({"temperature": 2.5}, "temperature", "value_out_of_range", "between 0 and 2"),
        ({"top_k": -2}, "top_k", "value_out_of_range", "-1 (off) or more"),
        ({"top_p": 1.5}, "top_p", "value_out_of_range", "between 0 and 1"),
        ({"do_sample": "yes"}, "do_sample", "invalid_type", "expected bool"),
        ({"max_tokens": 3}, "max_tokens", "unsupported_parameter", "use max_new_tokens"),
        ({"inputs": "x"}, "inputs", "unsupported_parameter", "use prompt"),
        ({"prompt": "a" * 5000}, "prompt", "context_length_exceeded", "at least 5000 tokens"),
        ({"max_new_tokens": 5000}, "max_new_tokens", "context_length_exceeded", "5000 in max_new_tokens"),
    ],
)
async def test_errors_name_the_field(
    client: httpx.AsyncClient, fields: dict[str, Any], param: str, code: str, words: str
) -> None:
    for stream in (False, True):
        answer = await generate(client, stream=stream, **fields)
        assert (answer.status_code, answer.headers["content-type"]) == (400, "application/json")
        error = answer.json()["error"]
        assert (error["param"], error["code"]) == (param, code)
        assert words in error["message"]


async def test_a_prompt_is_needed(client: httpx.AsyncClient) -> None:
    error = (await client.post("/generate", json={"max_new_tokens": 3})).json()["error"]
    assert (error["param"], error["code"]) == ("prompt", "missing_required_parameter")


@pytest.mark.parametrize(
    ("limit", "fields", "param"),
    [
        ({"max_temperature": 1.0}, {"do_sample": True, "temperature": 1.5}, "temperature"),
        ({"max_top_k": 200}, {"do_sample": True, "top_k": 300}, "top_k"),
        ({"max_tokens_limit": 10}, {"max_new_tokens": 11}, "max_new_tokens"),
    ],
)
async def test_the_servers_limits_hold(limit: dict[str, Any], fields: dict[str, Any], param: str) -> None:
    async with client_of(toy_services(**limit)) as client:
        answer = await generate(client, **fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert "this server takes at most" in answer.json()["error"]["message"]


async def test_unknown_fields_are_told_and_refused_where_the_server_is_strict() -> None:
    async with client_of(toy_services()) as client:
        assert (await generate(client, tempreature=1)).headers["x-headrace-ignored"] == "tempreature"
    async with client_of(toy_services(strict=True)) as client:
        assert (await generate(client, tempreature=1)).status_code == 400


async def test_what_was_in_force_is_told_by_its_own_names(client: httpx.AsyncClient) -> None:
    answer = await client.post(
        "/generate", json={"prompt": "x", "top_k": 4, "do_sample": True}, headers={"x-headrace-explain": "1"}
    )
    told = httpx.Response(200, text=answer.headers["x-headrace-parameters"]).json()
    assert told["max_new_tokens"] == {"value": 64, "from": "default"}
    assert told["top_k"] == {"value": 4, "from": "request"}
    assert told["do_sample"] == {"value": True, "from": "request"}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_full_queue_is_429(stream: bool) -> None:
    engine = FakeEngine(refusal=lambda submit: Rejected("queue_full", "The queue is full.", 1.0))
    async with client_of(toy_services(engine)) as client:
        answer = await generate(client, stream=stream)
    assert answer.status_code == 429 and answer.headers["retry-after"]


async def test_a_stream_that_fails_before_its_first_word_has_a_status() -> None:
    engine = FakeEngine(automatic=False)
    connection = post(toy_app(engine, migration=False), "/generate", {"prompt": PROMPT, "stream": True})
    await engine.until(lambda: bool(engine.playing))
    engine.die("it broke")
    await connection.end()
    assert connection.status >= 500 and connection.headers["content-type"] == "application/json"


async def test_a_stream_that_fails_later_has_no_end() -> None:
    """An error among the text would be taken for text: the missing end tells, and the log says why."""
    engine = FakeEngine(automatic=False, script=lambda submit, choice: Script.of("Hello"))
    services = toy_services(engine, migration=False)
    connection = post(create_app(services), "/generate", {"prompt": PROMPT, "stream": True})
    await engine.until(lambda: bool(engine.playing))
    engine.step()
    await connection.until(lambda seen: b"H" in seen.body)
    engine.die("it broke")
    await connection.end()
    assert (connection.status, connection.body) == (200, b"H")
    assert all(message.get("more_body", True) for message in connection.sent)
    ends = {outcome: counted(services, "requests_total", endpoint="generate", outcome=outcome) for outcome in OUTCOMES}
    assert {outcome for outcome, count in ends.items() if count} == {"unavailable"}


async def test_silence_is_not_filled_in(engine: FakeEngine) -> None:
    """A heart-beat would be taken for text."""
    engine.automatic = False
    connection = post(toy_app(engine, ping_s=0.01), "/generate", {"prompt": PROMPT, "stream": True})
    await engine.until(lambda: bool(engine.playing))
    engine.step()
    await connection.until(lambda seen: len(seen.sent) > 1)
    silent = post(toy_app(FakeEngine(automatic=False), ping_s=0.01), "/v1/completions", {
        "model": "toy", "prompt": "x", "stream": True,
    })  # fmt: skip
    await silent.until(lambda seen: seen.body.count(b": ping") == 3)
    assert connection.body == b" "
    connection.leave()
    silent.leave()
    await connection.end()
    await silent.end()


async def test_a_client_that_leaves_frees_its_place(engine: FakeEngine) -> None:
    engine.automatic = False
    connection = post(toy_app(engine), "/generate", {"prompt": PROMPT, "stream": True})
    await engine.until(lambda: bool(engine.playing))
    engine.step()
    await connection.until(lambda seen: len(seen.sent) > 1)
    connection.leave()
    await connection.end()
    assert engine.aborted == engine.submitted[0].seq_ids


async def test_no_other_method(client: httpx.AsyncClient) -> None:
    answer = await client.get("/generate")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
