"""The real Anthropic client, sync and async, against the real server and model."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import anthropic
import pytest

from tests.fixtures.server import MODEL, RunningServer

BASE: dict[str, Any] = {
    "model": MODEL,
    "max_tokens": 50,
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "extra_body": {"temperature": 0},
}
ANSWER = "The capital of France is Paris."


@pytest.fixture
def client(server: RunningServer) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="any", max_retries=0) as connected:
        yield connected


@pytest.fixture
async def async_client(server: RunningServer) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=server.url, api_key="any", max_retries=0) as connected:
        yield connected


def test_a_message_whole_and_streamed(client: anthropic.Anthropic) -> None:
    whole = client.messages.create(**BASE)
    assert whole.content[0].to_dict()["text"] == ANSWER
    assert whole.stop_reason == "end_turn"
    with client.messages.stream(**BASE) as stream:
        texts = list(stream.text_stream)
        final = stream.get_final_message()
    assert len(texts) > 1 and "".join(texts) == ANSWER
    assert final.stop_reason == "end_turn"
    assert final.usage.output_tokens == whole.usage.output_tokens


async def test_a_message_async(async_client: anthropic.AsyncAnthropic) -> None:
    answer = await async_client.messages.create(**BASE)
    assert answer.content[0].to_dict()["text"] == ANSWER
    async with async_client.messages.stream(**BASE) as stream:
        assert await stream.get_final_text() == ANSWER


def test_tokens_are_counted_as_the_prompt_has_them(client: anthropic.Anthropic) -> None:
    fields = {name: BASE[name] for name in ("model", "messages")} | {"system": "Answer in one word."}
    counted = client.messages.count_tokens(**fields)
    usage = client.messages.create(**{**BASE, **fields, "max_tokens": 1}).usage
    assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)


def test_the_answer_goes_on_where_the_last_message_ends(client: anthropic.Anthropic) -> None:
    messages = [*BASE["messages"], {"role": "assistant", "content": "The capital of"}]
    answer = client.messages.create(**{**BASE, "messages": messages})
    assert answer.content[0].to_dict()["text"] == ANSWER.removeprefix("The capital of")


def test_a_forced_call_keeps_to_its_schema(client: anthropic.Anthropic) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    }
    tools: Any = [{"name": "weather", "description": "Tells the weather.", "input_schema": schema}]
    answer = client.messages.create(**BASE, tools=tools, tool_choice={"type": "tool", "name": "weather"})
    (call,) = answer.content
    assert call.type == "tool_use" and call.name == "weather"
    assert call.input["city"] in ("Paris", "Rome")
    assert answer.stop_reason == "tool_use"


def test_errors_are_its_own(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as raised:
        client.messages.create(**{**BASE, "model": "claude"})
    assert raised.value.request_id
    with pytest.raises(anthropic.BadRequestError, match="maximum context length"):
        client.messages.create(**{**BASE, "messages": [{"role": "user", "content": "word " * 3000}]})
