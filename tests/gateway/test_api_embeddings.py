"""/v1/embeddings, by OpenAI's own client. The toy's hidden states are 1, 2, 3 and the number of tokens."""

import base64
import math
import struct
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2
import openai
import pytest

from gateway.http.app import create_app
from scheduler.types import Rejected
from tests.fixtures.fakes import MODEL, FakeEngine, client_of, toy_model, toy_ready, toy_services

Connect = Callable[..., openai.AsyncOpenAI]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    clients = []

    def build(engine: FakeEngine | None = None, model: Any = None, **settings: Any) -> openai.AsyncOpenAI:
        transport = httpx2.ASGITransport(app=create_app(toy_services(engine, model, **settings)))
        http_client = httpx2.AsyncClient(transport=transport)
        clients.append(
            openai.AsyncOpenAI(base_url="http://test/v1", api_key="any", http_client=http_client, max_retries=0)
        )
        return clients[-1]

    yield build
    for client in clients:
        await client.close()


def expected(*vector: float) -> list[float]:
    length = math.sqrt(sum(value * value for value in vector))
    return [struct.unpack("<f", struct.pack("<f", value / length))[0] for value in vector]


async def test_a_text(connect: Connect) -> None:
    answer = await connect().embeddings.create(model=MODEL, input="hello", encoding_format="float")
    assert answer.data[0].embedding == pytest.approx(expected(1, 2, 3, 5), rel=1e-6)
    assert (answer.data[0].index, answer.data[0].object, answer.model, answer.object) == (0, "embedding", MODEL, "list")
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == 5


async def test_what_clients_ask_for_by_default_is_the_same(connect: Connect) -> None:
    client = connect()
    by_default = await client.embeddings.create(model=MODEL, input="hello")
    as_numbers = await client.embeddings.create(model=MODEL, input="hello", encoding_format="float")
    assert by_default.data[0].embedding == as_numbers.data[0].embedding


async def test_base64_on_the_wire() -> None:
    async with client_of(toy_services()) as client:
        body = {"model": MODEL, "input": "hello", "encoding_format": "base64"}
        answer = await client.post("/v1/embeddings", json=body)
    assert "x-headrace-seed" not in answer.headers
    vector = struct.unpack("<4f", base64.b64decode(answer.json()["data"][0]["embedding"]))
    assert list(vector) == pytest.approx(expected(1, 2, 3, 5), rel=1e-6)


@pytest.mark.parametrize(
    ("given", "lengths"),
    [
        (["a", "bcd", "ef"], [1, 3, 2]),
        ([1, 2, 3], [3]),
        ([[1, 2, 3], [4]], [3, 1]),
        (["a"], [1]),
    ],
)
async def test_the_forms_of_input(connect: Connect, given: Any, lengths: list[int]) -> None:
    answer = await connect().embeddings.create(model=MODEL, input=given)
    assert [each.index for each in answer.data] == list(range(len(lengths)))
    for each, length in zip(answer.data, lengths, strict=True):
        assert each.embedding == pytest.approx(expected(1, 2, 3, length), rel=1e-6)
    assert answer.usage.prompt_tokens == sum(lengths)


@pytest.mark.parametrize("dimensions", [1, 2, 4])
async def test_fewer_dimensions_are_of_length_1_again(connect: Connect, dimensions: int) -> None:
    answer = await connect().embeddings.create(model=MODEL, input="hello", dimensions=dimensions)
    assert answer.data[0].embedding == pytest.approx(expected(*[1, 2, 3, 5][:dimensions]), rel=1e-6)


async def test_a_text_is_data(connect: Connect) -> None:
    engine = FakeEngine()
    await connect(engine, toy_model(add_bos=True)).embeddings.create(model=MODEL, input="<|end|>")
    assert engine.submitted[0].prompt == [256, *b"<|end|>"]
    assert engine.submitted[0].params.max_tokens == 0


async def test_what_has_no_effect_is_told(connect: Connect) -> None:
    raw = await connect().embeddings.with_raw_response.create(
        model=MODEL, input="x", user="me", extra_body={"task": "query"}
    )
    assert set(raw.headers["x-headrace-ignored"].split(", ")) == {"user", "task"}


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"input": ""}, "input", "value_out_of_range"),
        ({"input": []}, "input", "value_out_of_range"),
        ({"input": ["a", ""]}, "input[1]", "value_out_of_range"),
        ({"input": ["a", 3]}, "input[1]", "invalid_type"),
        ({"input": [[1, 2], [70000]]}, "input[1][0]", "value_out_of_range"),
        ({"input": [1, "a"]}, "input[1]", "invalid_type"),
        ({"input": {"text": "a"}}, "input", "invalid_type"),
        ({"input": ["a"] * 5}, "input", "value_out_of_range"),
        ({"input": ["a", "b" * 17]}, "input[1]", "context_length_exceeded"),
        ({"input": [[1] * 17]}, "input[0]", "context_length_exceeded"),
        ({"input": "a", "dimensions": 0}, "dimensions", "value_out_of_range"),
        ({"input": "a", "dimensions": 5}, "dimensions", "value_out_of_range"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format", "invalid_value"),
    ],
)
async def test_a_bad_request_names_its_field(connect: Connect, fields: dict[str, Any], param: str, code: str) -> None:
    client = connect(FakeEngine(ready=toy_ready(max_model_len=16)), max_sequences=4)
    with pytest.raises(openai.BadRequestError) as raised:
        await client.embeddings.create(model=MODEL, **fields)
    assert (raised.value.param, raised.value.code) == (param, code)


async def test_other_errors(connect: Connect) -> None:
    with pytest.raises(openai.NotFoundError):
        await connect().embeddings.create(model="other", input="a")
    with pytest.raises(openai.InternalServerError):
        await connect(FakeEngine(ready=None)).embeddings.create(model=MODEL, input="a")
    full = FakeEngine(refusal=lambda submit: Rejected("queue_full", "full", 1.0))
    with pytest.raises(openai.RateLimitError):
        await connect(full).embeddings.create(model=MODEL, input=["a", "b"])


async def test_a_full_context_is_embedded(connect: Connect) -> None:
    engine = FakeEngine(ready=toy_ready(max_model_len=16))
    answer = await connect(engine).embeddings.create(model=MODEL, input="x" * 16)
    assert answer.usage.prompt_tokens == 16
