"""The real OpenAI client against the app: its types, its stream parser, its error classes."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2
import openai
import pytest

from gateway.http.app import create_app
from scheduler.types import Rejected
from tests.fixtures.fakes import MODEL, FakeEngine, Script, toy_ready, toy_services

MESSAGES: list[Any] = [{"role": "user", "content": "hi"}]
Connect = Callable[..., openai.AsyncOpenAI]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    clients = []

    def build(engine: FakeEngine | None = None, **settings: Any) -> openai.AsyncOpenAI:
        transport = httpx2.ASGITransport(app=create_app(toy_services(engine, **settings)))
        http_client = httpx2.AsyncClient(transport=transport)
        clients.append(
            openai.AsyncOpenAI(base_url="http://test/v1", api_key="any", http_client=http_client, max_retries=0)
        )
        return clients[-1]

    yield build
    for client in clients:
        await client.close()


async def test_a_chat(connect: Connect) -> None:
    answer = await connect().chat.completions.create(model=MODEL, messages=MESSAGES, logprobs=True, top_logprobs=1)
    assert answer.choices[0].message.content == "Hello"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None and answer.usage.total_tokens == 11
    assert answer.choices[0].logprobs is not None and answer.choices[0].logprobs.content is not None
    assert answer.choices[0].logprobs.content[0].top_logprobs[0].token == "H"


async def test_a_streamed_chat(connect: Connect) -> None:
    stream = await connect().chat.completions.create(
        model=MODEL, messages=MESSAGES, stream=True, stream_options={"include_usage": True}, n=2
    )
    texts, usage = {0: "", 1: ""}, None
    async for chunk in stream:
        usage = chunk.usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == {0: "Hello", 1: "Hello"}
    assert usage is not None and usage.completion_tokens == 12


async def test_the_stream_helper(connect: Connect) -> None:
    async with connect().chat.completions.stream(model=MODEL, messages=MESSAGES) as stream:
        final = await stream.get_final_completion()
    assert final.choices[0].message.content == "Hello"


async def test_completions(connect: Connect) -> None:
    client = connect()
    answer = await client.completions.create(model=MODEL, prompt="hi", logprobs=1)
    assert answer.choices[0].text == "Hello"
    stream = await client.completions.create(model=MODEL, prompt="hi", stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == "Hello"


async def test_heart_beats_do_not_disturb_the_parser(connect: Connect) -> None:
    engine = FakeEngine(script=lambda submit, choice: Script.of("x" * 300))
    stream = await connect(engine, ping_s=0.0001).chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
    text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == "x" * 300


async def test_models(connect: Connect) -> None:
    client = connect()
    assert [model.id async for model in client.models.list()] == [MODEL]
    assert (await client.models.retrieve(MODEL)).created == 1_700_000_000


async def test_an_error_in_a_stream_is_raised(connect: Connect) -> None:
    engine = FakeEngine(script=lambda submit, choice: Script([[104], [105], []], "error"))
    # The first text and the failure come in one turn or in two; either way the client hears of it.
    with pytest.raises(openai.APIError) as raised:
        stream = await connect(engine).chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
        async for _ in stream:
            pass
    assert raised.value.code == "generation_failed"


def refusing(error: Exception) -> FakeEngine:
    return FakeEngine(refusal=lambda submit: error)


@pytest.mark.parametrize(
    ("engine", "fields", "error", "code"),
    [
        (FakeEngine, {"temperature": 5}, openai.BadRequestError, "value_out_of_range"),
        (FakeEngine, {"model": "other"}, openai.NotFoundError, "model_not_found"),
        (
            lambda: FakeEngine(ready=toy_ready(max_model_len=4)),
            {},
            openai.BadRequestError,
            "context_length_exceeded",
        ),
        (lambda: refusing(Rejected("queue_full", "full", 1.0)), {}, openai.RateLimitError, "queue_full"),
        (lambda: FakeEngine(ready=None), {}, openai.InternalServerError, "engine_unavailable"),
        (
            lambda: FakeEngine(lambda submit, choice: Script([], "expired")),
            {},
            openai.InternalServerError,
            "queue_timeout",
        ),
    ],
)
async def test_error_classes(
    connect: Connect,
    engine: Callable[[], FakeEngine],
    fields: dict[str, Any],
    error: type[openai.APIStatusError],
    code: str,
) -> None:
    body: dict[str, Any] = {"model": MODEL, "messages": MESSAGES, **fields}
    with pytest.raises(error) as raised:
        await connect(engine()).chat.completions.create(**body)
    assert raised.value.code == code
    assert raised.value.request_id


async def test_the_client_retries_a_full_queue(connect: Connect) -> None:
    refusals = [Rejected("queue_full", "full", 0.0)]
    client = connect(FakeEngine(refusal=lambda submit: refusals.pop() if refusals else None))
    answer = await client.with_options(max_retries=1).chat.completions.create(model=MODEL, messages=MESSAGES)
    assert answer.choices[0].message.content == "Hello"
