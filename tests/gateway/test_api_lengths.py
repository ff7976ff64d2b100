"""What is hopelessly long is refused before it is encoded, wherever a chat keeps it."""

import inspect
import sys
from typing import Any

import pytest

from gateway.chat.jinja import JinjaTemplate
from gateway.errors import ApiError
from gateway.openai import ChatRequest
from gateway.requests.chat_prompt import encode_chat
from gateway.requests.conversation import tool_choice
from tests.fixtures.fakes import MODEL, ByteTokenizer, FakeEngine, client_of, toy_model, toy_ready, toy_services

HI = {"role": "user", "content": "Hi"}
LONG = "word " * 200
CHAT, MESSAGES, COUNT = "/v1/chat/completions", "/v1/messages", "/v1/messages/count_tokens"


def tool(**function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", **function}}


def called(name: str) -> list[dict[str, Any]]:
    call = {"id": "c", "type": "function", "function": {"name": name, "arguments": "{}"}}
    return [HI, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "c", "content": "x"}]


async def refusal(path: str, **fields: Any) -> tuple[int, str, int]:
    """Status, code of OpenAI's errors or type of Anthropic's, and how often a text was encoded."""
    tokenizer = ByteTokenizer()
    model = toy_model(context_length=100, tokenizer=tokenizer)
    services = toy_services(FakeEngine(ready=toy_ready(max_model_len=100)), model)
    async with client_of(services) as client:
        answer = await client.post(path, json={"model": MODEL, **fields})
    error = answer.json().get("error", {})
    return answer.status_code, error.get("code", error.get("type")), tokenizer.num_encodes


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [HI], "tools": [tool(description=LONG)]},
        {"messages": [HI], "tools": [tool(parameters={"type": "object", "description": LONG})]},
        {"messages": called(LONG)},
        {"messages": [{**HI, "name": LONG}]},
        {"messages": [HI, {"role": "assistant", "content": "x", "reasoning_content": LONG}, HI]},
    ],
    ids=["description", "schema", "call", "name", "reasoning"],
)
async def test_a_chat(fields: dict[str, Any]) -> None:
    assert await refusal(CHAT, **fields) == (400, "context_length_exceeded", 0)


async def test_tools_that_stay_out_of_the_prompt_do_not_count() -> None:
    status, _, _ = await refusal(CHAT, messages=[HI], tools=[tool(description=LONG)], tool_choice="none")
    assert status == 200


async def test_counting_goes_somewhat_over_the_context() -> None:
    def message(num_chars: int) -> list[dict[str, Any]]:
        return [{"role": "user", "content": "a" * num_chars}]

    assert (await refusal(COUNT, messages=message(700)))[0] == 200
    assert await refusal(COUNT, messages=message(801)) == (400, "invalid_request_error", 0)
    assert (await refusal("/tokenize", messages=message(801)))[0] == 400


async def test_white_space_counts_where_it_stays_and_somewhat_where_a_template_may_take_it_off() -> None:
    code = "context_length_exceeded"
    assert await refusal("/v1/completions", prompt=" " * 101) == (400, code, 0)
    assert await refusal("/tokenize", prompt=" " * 801) == (400, code, 0)
    assert await refusal(CHAT, messages=[{"role": "user", "content": " " * 801}]) == (400, code, 0)


async def test_what_a_chat_tells_of_its_prompt_is_bounded() -> None:
    services = toy_services(FakeEngine(ready=toy_ready(max_model_len=1 << 17)), toy_model(context_length=1 << 17))
    async with client_of(services) as client:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "a" * 30_000}], "prompt_logprobs": 20}
        error = (await client.post(CHAT, json=body)).json()["error"]
    assert (error["param"], error["code"]) == ("prompt_logprobs", "value_out_of_range")


async def test_what_is_nested_too_deeply_to_be_walked_through_is_refused() -> None:
    """How deep that is depends on Python's version and on who calls: here few calls are left."""
    tokenizer, deep = ByteTokenizer(), {}
    for _ in range(200):
        deep = {"x": deep}
    template = JinjaTemplate("{{ messages[0].content }}{{ x }}", tokenizer, {})
    model = toy_model(tokenizer=tokenizer, chat_template=template)
    request = ChatRequest(model=MODEL, messages=[], chat_template_kwargs={"x": deep})
    choice = tool_choice(None, [], None)
    encode_chat(request, [HI], choice, model, [])
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 150)
    try:
        with pytest.raises(ApiError, match="nested too deeply") as refused:
            encode_chat(request, [HI], choice, model, [])
    finally:
        sys.setrecursionlimit(limit)
    assert refused.value.status == 400


@pytest.mark.parametrize("path", [CHAT, MESSAGES, COUNT, "/tokenize"])
async def test_messages_are_counted_before_they_are_decoded(path: str) -> None:
    services = toy_services(max_messages=2)
    body = {"model": MODEL, "messages": [17, 17, 17], "max_tokens": 5}
    async with client_of(services) as client:
        answer = await client.post(path, json=body)
    assert answer.status_code == 400
    assert "There are 3 messages" in answer.json()["error"]["message"]
