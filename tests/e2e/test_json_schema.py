"""Answers of the real model that are held to JSON schemas, many at once: what ends by itself is valid."""

import asyncio
import json
from typing import Any

import httpx
import jsonschema
import jsonschema_rs
import openai
import pytest
from jsonschema import Draft202012Validator

from tests.fixtures.schemas import KINDS, Schema, array, closed, defined, ref
from tests.fixtures.server import MODEL, PATIENCE_S, RunningServer

MESSAGES: list[Any] = [{"role": "user", "content": "Tell me about yourself, in JSON."}]
ALL = [(f"{kind}-{index}", schema) for kind, schemas in KINDS.items() for index, schema in enumerate(schemas)]
MAX_TOKENS = 160
AT_ONCE = 48  # requests, more than the engine has rows for
MOST_CUT = 0.1  # of the answers that may reach max_tokens: a model this small finds no end to some strings

PERSON = closed(
    name={"type": "string", "maxLength": 12},
    age={"type": "integer", "minimum": 0, "maximum": 120},
    tags=array({"enum": ["a", "b", "c"]}, maxItems=2),
)


def body(schema: Schema, **fields: Any) -> dict[str, Any]:
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    return {"model": MODEL, "messages": MESSAGES, "max_tokens": MAX_TOKENS, "response_format": form, **fields}


def check(schema: Schema, text: str) -> None:
    """By two validators: the second knows more of the formats."""
    answer = json.loads(text)
    jsonschema.validate(answer, schema, Draft202012Validator, format_checker=Draft202012Validator.FORMAT_CHECKER)
    jsonschema_rs.Draft202012Validator(schema, validate_formats=True).validate(answer)


def problem(schema: Schema, choice: dict[str, Any]) -> str | None:
    try:
        check(schema, choice["message"]["content"])
    except (ValueError, jsonschema.ValidationError) as error:
        return f"{choice['message']['content'][:200]}: {error}"
    return None


async def test_what_ends_by_itself_is_valid(server: RunningServer) -> None:
    places = asyncio.Semaphore(AT_ONCE)
    async with httpx.AsyncClient(base_url=server.api, timeout=PATIENCE_S) as client:

        async def ask(number: int, schema: Schema) -> dict[str, Any]:
            async with places:
                answer = await client.post("/chat/completions", json=body(schema, seed=number))
            assert answer.status_code == 200, (schema, answer.text)
            choice: dict[str, Any] = answer.json()["choices"][0]
            return choice

        choices = await asyncio.gather(*(ask(number, schema) for number, (_, schema) in enumerate(ALL)))
    cut = [name for (name, _), choice in zip(ALL, choices, strict=True) if choice["finish_reason"] == "length"]
    assert {choice["finish_reason"] for choice in choices} <= {"stop", "length"}
    assert len(ALL) >= 200 and len(cut) <= MOST_CUT * len(ALL), cut
    problems = {
        name: problem(schema, choice)
        for (name, schema), choice in zip(ALL, choices, strict=True)
        if choice["finish_reason"] == "stop"
    }
    assert not {name: words for name, words in problems.items() if words}


def test_a_cut_answer_says_so(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**body(PERSON, max_tokens=5))
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None and answer.usage.completion_tokens == 5


def test_several_choices_with_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**body(PERSON, n=2, seed=4, logprobs=True, top_logprobs=2))
    texts = []
    for choice in answer.choices:
        assert choice.finish_reason == "stop" and choice.message.content
        check(PERSON, choice.message.content)
        texts.append(choice.message.content)
        assert choice.logprobs is not None and choice.logprobs.content
        assert "".join(token.token for token in choice.logprobs.content).startswith(choice.message.content)
        assert all(len(token.top_logprobs) == 2 for token in choice.logprobs.content)
    assert len(texts) == 2 and texts[0] != texts[1]


def test_a_stream_is_the_same_answer(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(**body(PERSON, seed=5)).choices[0].message.content
    stream = client.chat.completions.create(**body(PERSON, seed=5, stream=True))
    chunks = [chunk.choices[0] for chunk in stream]
    text = "".join(choice.delta.content or "" for choice in chunks)
    assert text == whole and chunks[-1].finish_reason == "stop"
    check(PERSON, text)


def test_a_stop_string_ends_it_before_the_schema_does(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**body(PERSON, stop=[', "age"']))
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.choices[0].message.content or "").endswith('"')
    assert "age" not in (answer.choices[0].message.content or "")


@pytest.mark.parametrize("temperature", [0, 2])
def test_at_any_temperature(client: openai.OpenAI, temperature: float) -> None:
    answer = client.chat.completions.create(**body(PERSON, temperature=temperature, seed=1))
    assert answer.choices[0].finish_reason == "stop"
    check(PERSON, answer.choices[0].message.content or "")


def test_completions_and_the_guided_fields_take_the_same_path(server: RunningServer) -> None:
    schema = defined(closed(a=ref("n")), n={"type": "integer", "minimum": 0, "maximum": 99})
    form = body(schema)["response_format"]
    for fields in ({"response_format": form}, {"guided_json": schema}, {"structured_outputs": {"json": schema}}):
        answer = server.post("/v1/completions", {"prompt": "JSON:", "max_tokens": 40, **fields}).json()
        assert answer["choices"][0]["finish_reason"] == "stop"
        check(schema, answer["choices"][0]["text"])


def test_what_cannot_be_enforced_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(**body(closed(tags=array({"type": "string"}, uniqueItems=True))))
    assert raised.value.param == "response_format.json_schema.schema.properties.tags.uniqueItems"
    assert "'uniqueItems' cannot be enforced" in str(raised.value)
