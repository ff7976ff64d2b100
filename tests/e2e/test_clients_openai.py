"""The OpenAI client's helpers against the real server: parsing into models, events of streams, loops with tools."""

import json
from typing import Any, Literal

import openai
import pytest
from openai.lib.streaming.chat import ChatCompletionStream
from pydantic import BaseModel, Field

from tests.fixtures.server import MODEL

QUESTION: list[Any] = [{"role": "user", "content": "How is the weather in Paris?"}]
FIXED: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_tokens": 80}
SHORT = FIXED | {"max_tokens": 12}


class Part(BaseModel):
    label: Literal["noun", "verb"]
    count: int = Field(ge=0, le=9)


class Sentence(BaseModel):
    text: str = Field(max_length=20)
    parts: list[Part] = Field(max_length=2)
    note: str | None = Field(max_length=10)


class Weather(BaseModel):
    """The weather in a city."""

    city: Literal["Paris", "Rome"]
    days: Literal[1, 2, 3]


TOOL = openai.pydantic_function_tool(Weather, name="weather")
OTHER: Any = {"type": "function", "function": {"name": "time", "parameters": {"type": "object", "properties": {}}}}


def test_parse(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(**FIXED, messages=QUESTION, response_format=Sentence)
    message = answer.choices[0].message
    assert isinstance(message.parsed, Sentence) and message.refusal is None
    assert message.parsed == Sentence.model_validate_json(message.content or "")


async def test_parse_async(async_client: openai.AsyncOpenAI) -> None:
    answer = await async_client.chat.completions.parse(**FIXED, messages=QUESTION, response_format=Sentence, n=2)
    assert all(isinstance(choice.message.parsed, Sentence) for choice in answer.choices)


def test_parse_tells_of_a_cut_answer(client: openai.OpenAI) -> None:
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(**FIXED | {"max_tokens": 5}, messages=QUESTION, response_format=Sentence)


def test_parsed_arguments_of_a_tool(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        **FIXED, messages=QUESTION, tools=[TOOL], tool_choice="required", parallel_tool_calls=False
    )
    calls = answer.choices[0].message.tool_calls
    assert answer.choices[0].finish_reason == "tool_calls"
    assert calls and all(isinstance(call.function.parsed_arguments, Weather) for call in calls)


def test_events_of_a_stream(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(**FIXED, messages=QUESTION, response_format=Sentence) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    kinds = [event.type for event in events]
    assert kinds.count("content.delta") > 3 and kinds.count("content.done") == 1
    done: Any = next(event for event in events if event.type == "content.done")
    assert isinstance(done.parsed, Sentence) and final.choices[0].message.parsed == done.parsed


def test_events_of_streamed_calls(client: openai.OpenAI) -> None:
    named: Any = {"type": "function", "function": {"name": "weather"}}
    with client.chat.completions.stream(**FIXED, messages=QUESTION, tools=[TOOL], tool_choice=named) as stream:
        events: list[Any] = list(stream)
    (done,) = [event for event in events if event.type == "tool_calls.function.arguments.done"]
    deltas = [event for event in events if event.type == "tool_calls.function.arguments.delta"]
    assert done.name == "weather" and isinstance(done.parsed_arguments, Weather)
    assert "".join(event.arguments_delta for event in deltas) == done.arguments
    assert calls_of(stream) == [("weather", done.arguments)]


def calls_of(stream: ChatCompletionStream[Any]) -> list[tuple[str, str]]:
    message = stream.get_final_completion().choices[0].message
    return [(call.function.name, call.function.arguments) for call in message.tool_calls or []]


def test_log_probabilities_as_events(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(**SHORT, messages=QUESTION, logprobs=True, top_logprobs=1) as stream:
        kinds = {event.type for event in stream}
    assert {"logprobs.content.delta", "logprobs.content.done", "content.delta"} <= kinds


@pytest.mark.parametrize("choice", ["required", "weather", "auto"])
def test_a_loop_with_tools(client: openai.OpenAI, choice: str) -> None:
    """Asked with tools, answered with their results, until there is text."""
    named: Any = {"type": "function", "function": {"name": choice}}
    messages, asked = list(QUESTION), named if choice == "weather" else choice
    for _ in range(3):
        answer = client.chat.completions.create(
            **FIXED, messages=messages, tools=[TOOL, OTHER], tool_choice=asked, parallel_tool_calls=False
        )
        (got,) = answer.choices
        messages.append(got.message)
        if not got.message.tool_calls:
            break
        assert got.finish_reason == "tool_calls"
        for call in got.message.tool_calls:
            assert choice != "weather" or call.function.name == "weather"
            if call.function.name == "weather":
                Weather.model_validate_json(call.function.arguments)
            messages.append({"role": "tool", "tool_call_id": call.id, "content": json.dumps({"weather": "sunny"})})
        asked = "none"
    assert choice == "auto" or len(messages) > 2
    assert messages[-1].content


def test_raw_answers_and_streams(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(**SHORT, messages=QUESTION, extra_body={"other": 1})
    assert raw.headers["x-headrace-ignored"] == "other" and raw.headers["x-request-id"]
    assert raw.parse().choices[0].message.content
    with client.chat.completions.with_streaming_response.create(**SHORT, messages=QUESTION, stream=True) as response:
        lines = [line for line in response.iter_lines() if line]
    assert response.headers["content-type"].startswith("text/event-stream")
    assert lines[-1] == "data: [DONE]" and all(line.startswith("data: ") for line in lines)


async def test_a_raw_stream_that_is_left(async_client: openai.AsyncOpenAI) -> None:
    create = async_client.chat.completions.with_streaming_response.create
    async with create(**SHORT, messages=QUESTION, stream=True) as response:
        async for line in response.iter_lines():
            assert line.startswith("data: ")
            break
    assert response.is_closed
