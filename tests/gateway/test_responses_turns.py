"""Items as messages: what an assistant thought, said and called in a row is one message."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.errors import ApiError
from gateway.responses.convert import renamed, renamed_error
from gateway.responses.turns import Sourced, messages
from gateway.responses.types import (
    FunctionCall,
    FunctionCallOutput,
    InputText,
    Item,
    Message,
    OutputText,
    ReasoningItem,
    ReasoningText,
    Refusal,
)


def user(text: str) -> Message:
    return Message("u", "user", [InputText(text)])


def said(text: str) -> Message:
    return Message("a", "assistant", [OutputText(text)])


def thought(text: str) -> ReasoningItem:
    return ReasoningItem("r", [ReasoningText(text)])


def called(call_id: str) -> FunctionCall:
    return FunctionCall("f", call_id, "get", "{}")


def returned(call_id: str) -> FunctionCallOutput:
    return FunctionCallOutput("o", call_id, [InputText("one"), InputText("two")])


def short(message: dict[str, Any]) -> str:
    """u:text, t:text, a:text, with (reasoning) before it and +calls behind it."""
    calls = "".join(f"+{call['id']}" for call in message.get("tool_calls", ()))
    reasoning = f"({message['reasoning_content']})" if "reasoning_content" in message else ""
    return f"{message['role'][0]}:{reasoning}{message['content'] or ''}{calls}"


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ([user("x"), said("y"), user("z")], ["u:x", "a:y", "u:z"]),
        ([user("x"), user("y")], ["u:x", "u:y"]),
        ([said("x"), said("y")], ["a:x", "a:y"]),
        ([thought("h"), said("x"), called("1"), called("2")], ["a:(h)x+1+2"]),
        ([thought("h"), called("1"), returned("1"), thought("i"), said("x")], ["a:(h)+1", "t:one\ntwo", "a:(i)x"]),
        ([said("x"), thought("h"), said("y")], ["a:x", "a:(h)y"]),
        ([called("1"), said("x")], ["a:+1", "a:x"]),
        ([called("1"), thought("h"), called("2")], ["a:+1", "a:(h)+2"]),
        ([thought("h"), thought("i"), said("x")], ["a:(h\ni)x"]),
        ([user("x"), thought("h")], ["u:x"]),
        ([Message("m", "assistant", [OutputText("x"), Refusal("no")])], ["a:x\nno"]),
        ([Message("m", "developer", [InputText("x"), InputText("y")])], ["d:x\ny"]),
    ],
)
def test_items_become_messages(items: list[Item], expected: list[str]) -> None:
    assert [short(turn.message) for turn in messages((item, "") for item in items)] == expected


def test_a_message_comes_from_where_its_first_item_does() -> None:
    items = [(thought("h"), "input[0]"), (said("x"), "input[1]"), (user("y"), "input[2]")]
    assert [turn.source for turn in messages(items)] == ["input[0]", "input[2]"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("messages", "input"),
        ("messages[0]", "instructions"),
        ("messages[1].content", "input[4]"),
        ("messages[1].tool_calls[0].function.name", "input[4]"),
        ("tools[3].function.parameters.type", "tools[3].parameters.type"),
        ("tool_choice.function.name", "tool_choice.name"),
        ("tool_choice.allowed_tools.tools[1].function.name", "tool_choice.tools[1].name"),
        ("response_format.json_schema.schema.type", "text.format.schema.type"),
        ("messages[9].content", "input"),
        ("max_completion_tokens", "max_output_tokens"),
        ("chat_template_kwargs.messages[0]", "chat_template_kwargs.messages[0]"),
    ],
)
def test_fields_are_named_as_in_this_api(text: str, expected: str) -> None:
    turns = [Sourced({"role": "system"}, "instructions"), Sourced({"role": "user"}, "input[4]")]
    assert renamed(text, turns) == expected


def test_in_a_message_the_fields_own_name_is_replaced_and_nothing_else() -> None:
    turns = [Sourced({"role": "user"}, "input")]
    told = ApiError(400, "messages[0].role is 'messages[0]x' of messages[0].role.", param="messages[0].role")
    assert renamed_error(told, turns).message == "input is 'messages[0]x' of input."
    counts = "7 in the messages and 3 in max_completion_tokens."
    told = ApiError(400, counts, param="messages", code="context_length_exceeded")
    assert renamed_error(told, turns).message == "7 in the input and 3 in max_output_tokens."
