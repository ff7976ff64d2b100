"""What is hopelessly long is refused before it is encoded, wherever a chat keeps it."""

from typing import Any

import pytest

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


@pytest.mark.parametrize("path", [CHAT, MESSAGES, COUNT, "/tokenize"])
async def test_messages_are_counted_before_they_are_decoded(path: str) -> None:
    services = toy_services(max_messages=2)
    body = {"model": MODEL, "messages": [17, 17, 17], "max_tokens": 5}
    async with client_of(services) as client:
        answer = await client.post(path, json=body)
    assert answer.status_code == 400
    assert "There are 3 messages" in answer.json()["error"]["message"]
