"""The real OpenAI client against /v1/responses: its types, its stream helper, its parsed answers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from gateway.http.keys import Keys
from tests.fixtures.fakes import MODEL, FakeEngine
from tests.gateway.responses_api import CALL, HELLO, THINKING, WEATHER, prompt_of, saying, sdk, services_of


class City(BaseModel):
    name: str
    population: int


async def test_a_response() -> None:
    async with sdk(services_of(FakeEngine(cached_tokens=2))) as client:
        answer = await client.responses.create(**HELLO, metadata={"a": "b"}, temperature=0.5, max_output_tokens=50)
    assert answer.output_text == "Hello"
    assert (answer.status, answer.error, answer.incomplete_details) == ("completed", None, None)
    assert (answer.metadata, answer.temperature, answer.top_p) == ({"a": "b"}, 0.5, 1.0)
    assert (answer.max_output_tokens, answer.tool_choice, answer.tools) == (50, "auto", [])
    assert answer.id.startswith("resp_") and answer.output[0].id is not None and answer.output[0].id.startswith("msg_")
    assert answer.usage is not None
    assert (answer.usage.input_tokens, answer.usage.output_tokens, answer.usage.total_tokens) == (5, 6, 11)
    assert answer.usage.input_tokens_details.cached_tokens == 2
    assert answer._request_id


async def test_an_answer_that_was_cut() -> None:
    async with sdk(services_of()) as client:
        answer = await client.responses.create(**HELLO, max_output_tokens=3)
    assert (answer.status, answer.output_text) == ("incomplete", "Hel")
    assert answer.incomplete_details is not None and answer.incomplete_details.reason == "max_output_tokens"
    assert answer.output[0].type == "message" and answer.output[0].status == "incomplete"


async def test_reasoning_stands_in_an_item_of_its_own() -> None:
    async with sdk(services_of(saying("<think>Hm.</think>Yes."), THINKING)) as client:
        answer = await client.responses.create(**HELLO)
    [thought, message] = answer.output
    assert thought.type == "reasoning" and thought.content is not None
    assert (thought.content[0].text, thought.summary) == ("Hm.", [])
    assert message.type == "message" and answer.output_text == "Yes."
    assert answer.usage is not None and answer.usage.output_tokens_details.reasoning_tokens > 0


async def test_logprobs() -> None:
    async with sdk(services_of()) as client:
        answer = await client.responses.create(**HELLO, include=["message.output_text.logprobs"], top_logprobs=2)
    message = answer.output[0]
    assert message.type == "message" and message.content[0].type == "output_text"
    logprobs = message.content[0].logprobs
    assert logprobs is not None
    assert "".join(each.token for each in logprobs[:5]) == "Hello"
    assert [len(each.top_logprobs) for each in logprobs] == [2] * len(logprobs)


async def test_the_stream_helper() -> None:
    async with sdk(services_of()) as client, client.responses.stream(**HELLO) as stream:
        deltas = [event.delta async for event in stream if event.type == "response.output_text.delta"]
        final = await stream.get_final_response()
    assert "".join(deltas) == final.output_text == "Hello"


async def test_the_stream_helper_with_a_call() -> None:
    async with sdk(services_of(saying(CALL))) as client, client.responses.stream(**HELLO, tools=[WEATHER]) as stream:
        final = await stream.get_final_response()
    assert final.output[0].type == "function_call"
    assert final.output[0].arguments == '{"city": "Paris"}'


async def test_a_parsed_answer() -> None:
    engine = saying('{"name": "Paris", "population": 2}')
    async with sdk(services_of(engine)) as client:
        answer = await client.responses.parse(**HELLO, text_format=City)
        async with client.responses.stream(**HELLO, text_format=City) as stream:
            streamed = await stream.get_final_response()
    assert answer.output_parsed == streamed.output_parsed == City(name="Paris", population=2)
    assert all(submit.params.grammar for submit in engine.submitted)
    assert answer.text is not None and answer.text.format is not None and answer.text.format.type == "json_schema"


async def test_a_round_of_tools() -> None:
    engine = saying(CALL, "Rain.")
    async with sdk(services_of(engine)) as client:
        asked = await client.responses.create(**HELLO, tools=[WEATHER], instructions="Be brief.")
        [call] = asked.output
        assert call.type == "function_call" and call.name == "weather"
        output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "wet"}
        answer = await client.responses.create(model=MODEL, previous_response_id=asked.id, input=[output])
    assert answer.output_text == "Rain."
    assert answer.previous_response_id == asked.id
    prompt = prompt_of(engine)
    assert prompt.index("hi") < prompt.index('"city": "Paris"') < prompt.index("wet")
    assert "Be brief." in prompt_of(engine, 0) and "Be brief." not in prompt


async def test_output_items_may_be_sent_back_instead() -> None:
    engine = saying("<think>Hm.</think>" + CALL, "Rain.")
    services = services_of(engine, THINKING, strict=True)
    async with sdk(services) as client:
        asked = await client.responses.create(**HELLO, tools=[WEATHER], store=False)
        call = asked.output[-1]
        assert call.type == "function_call"
        items: list[Any] = [{"role": "user", "content": "hi"}, *[item.to_dict() for item in asked.output]]
        items.append({"type": "function_call_output", "call_id": call.call_id, "output": "wet"})
        answer = await client.responses.create(model=MODEL, input=items, tools=[WEATHER])
    assert answer.output_text == "Rain."
    assert "wet" in prompt_of(engine)


async def test_a_conversation_goes_back_to_its_start() -> None:
    engine = saying("One", "Two", "Three")
    previous = None
    async with sdk(services_of(engine)) as client:
        for text in ("first", "second", "third"):
            answer = await client.responses.create(model=MODEL, input=text, previous_response_id=previous)
            previous = answer.id
    said = [
        f"<|user|>{user}<|end|><|assistant|>{reply}<|end|>" for user, reply in (("first", "One"), ("second", "Two"))
    ]
    assert prompt_of(engine) == "".join(said) + "<|user|>third<|end|><|assistant|>"


async def test_retrieve_items_and_delete() -> None:
    async with sdk(services_of()) as client:
        answer = await client.responses.create(**HELLO)
        assert (await client.responses.retrieve(answer.id)).to_dict() == answer.to_dict()
        items = [item async for item in client.responses.input_items.list(answer.id)]
        assert items[0].type == "message" and items[0].content[0].to_dict() == {"type": "input_text", "text": "hi"}
        await client.responses.delete(answer.id)
        for gone in (client.responses.retrieve, client.responses.delete, client.responses.cancel):
            with pytest.raises(openai.NotFoundError) as raised:
                await gone(answer.id)
            assert raised.value.code == "response_not_found"


async def test_input_items_come_in_pages() -> None:
    given: Any = [{"role": "user", "content": f"text {number}"} for number in range(5)]
    async with sdk(services_of()) as client:
        answer = await client.responses.create(model=MODEL, input=given)
        for order, expected in (("asc", [0, 1, 2, 3, 4]), ("desc", [4, 3, 2, 1, 0])):
            pages = client.responses.input_items.list(answer.id, limit=2, order=order)  # type: ignore[arg-type]
            texts = [item.content[0].text async for item in pages]  # type: ignore[union-attr]
            assert texts == [f"text {number}" for number in expected]


async def test_a_reference_to_an_item() -> None:
    engine = saying("One", "Two")
    async with sdk(services_of(engine)) as client:
        first = await client.responses.create(**HELLO)
        items: Any = [{"type": "item_reference", "id": first.output[0].id}, {"role": "user", "content": "more"}]
        await client.responses.create(model=MODEL, input=items)
        assert prompt_of(engine) == "<|assistant|>One<|end|><|user|>more<|end|><|assistant|>"
        with pytest.raises(openai.NotFoundError) as raised:
            await client.responses.create(model=MODEL, input=[{"type": "item_reference", "id": "msg_none"}])
    assert raised.value.param == "input[0].id"


async def test_input_tokens() -> None:
    async with sdk(services_of()) as client:
        counted = await client.responses.input_tokens.count(**HELLO, instructions="x")
    assert counted.input_tokens == 8


async def test_a_response_belongs_to_its_key(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("sk-one\nsk-two")
    services = services_of()
    guarded = replace(services, keys=Keys("", tmp_path / "keys", services.clock))
    async with sdk(guarded, "sk-one") as client:
        mine = await client.responses.create(**HELLO)
        assert (await client.responses.retrieve(mine.id)).id == mine.id
        other = client.with_options(api_key="sk-two").responses
        reference: Any = {"type": "item_reference", "id": mine.output[0].id}
        for asking in (
            other.retrieve(mine.id),
            other.delete(mine.id),
            other.cancel(mine.id),
            other.create(**HELLO, previous_response_id=mine.id),
            other.create(model=MODEL, input=[reference]),
        ):
            with pytest.raises(openai.NotFoundError):
                await asking
        assert (await client.responses.retrieve(mine.id)).id == mine.id
