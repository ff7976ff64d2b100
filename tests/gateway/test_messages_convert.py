"""What a Messages request becomes as a chat."""

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from gateway.answers.reasoning import ReasoningFormat
from gateway.messages.convert import Translated, translate
from gateway.messages.types import MessagesRequest
from gateway.model.served import ServedModel
from tests.fixtures.fakes import ByteTemplate, toy_model

TOOL: dict[str, Any] = {"name": "f", "description": "A function.", "input_schema": {"type": "object"}}


def translated(model: ServedModel | None = None, **fields: Any) -> tuple[Translated, list[str]]:
    body = msgspec.json.encode({"model": "toy", "max_tokens": 9, "messages": [], **fields})
    ignored: list[str] = []
    request = msgspec.json.decode(body, type=MessagesRequest)
    raws = msgspec.json.decode(body, type=dict[str, Raw])
    return translate(request, raws, model or toy_model(), ignored), ignored


def messages_of(*messages: tuple[str, Any], system: Any = None) -> list[dict[str, Any]]:
    turns = [{"role": role, "content": content} for role, content in messages]
    chat, _ = translated(messages=turns, system=system)
    return [msgspec.json.decode(raw) for raw in chat.request.messages]


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


def call(id: str = "c1", **input: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": id, "name": "f", "input": input}


def result(id: str = "c1", **fields: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": id, **fields}


def test_the_system_prompt_comes_first() -> None:
    expected = [{"role": "system", "content": "a\nb"}, {"role": "user", "content": "hi"}]
    assert messages_of(("user", "hi"), system=[text("a"), text("b")]) == expected
    assert messages_of(("user", "hi"), system="a\nb") == expected


def test_neighbours_of_one_role_are_one_turn() -> None:
    assert messages_of(("user", "a"), ("user", [text("b"), text("c")]), ("assistant", "d"), ("assistant", "e")) == [
        {"role": "user", "content": "a\nb\nc"},
        {"role": "assistant", "content": "de"},
    ]


def test_calls_and_results() -> None:
    thought = {"type": "thinking", "thinking": "Hm.", "signature": ""}
    assistant = [thought, text("I look."), call("c1", city="Köln"), call("c2")]
    user = [result("c1", content="21"), result("c2", content=[text("a"), text("b")]), text("And?")]
    assert messages_of(("user", "hi"), ("assistant", assistant), ("user", user))[1:] == [
        {
            "role": "assistant",
            "content": "I look.",
            "reasoning_content": "Hm.",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"city": "Köln"}'}},
                {"id": "c2", "type": "function", "function": {"name": "f", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "content": "21", "tool_call_id": "c1"},
        {"role": "tool", "content": "a\nb", "tool_call_id": "c2"},
        {"role": "user", "content": "And?"},
    ]


def test_a_failed_call_is_told_to_the_model() -> None:
    failed = result(content="no such city", is_error=True)
    assert (
        messages_of(("user", "hi"), ("assistant", [call()]), ("user", [failed]))[-1]["content"] == "Error: no such city"
    )


def test_results_without_content() -> None:
    assert messages_of(("user", "hi"), ("assistant", [call()]), ("user", [result()]))[-1]["content"] == ""


def test_redacted_thinking_is_left_out_and_told() -> None:
    redacted = {"type": "redacted_thinking", "data": "x"}
    turns = [("user", "hi"), ("assistant", [redacted, text("a")]), ("user", "b")]
    chat, ignored = translated(messages=[{"role": role, "content": content} for role, content in turns])
    assert ignored == ["messages[1].content[0]"]
    assert msgspec.json.decode(chat.request.messages[1]) == {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    ("choice", "expected", "parallel"),
    [
        (None, None, None),
        ({"type": "auto"}, "auto", None),
        ({"type": "any", "disable_parallel_tool_use": True}, "required", False),
        ({"type": "none"}, "none", None),
        ({"type": "tool", "name": "f"}, {"type": "function", "function": {"name": "f"}}, None),
    ],
)
def test_tools(choice: Any, expected: Any, parallel: bool | None) -> None:
    chat, _ = translated(messages=[{"role": "user", "content": "x"}], tools=[TOOL], tool_choice=choice)
    assert chat.request.tools is not None
    function = {"name": "f", "description": "A function.", "parameters": {"type": "object"}, "strict": False}
    assert msgspec.json.decode(chat.request.tools[0]) == {"type": "function", "function": function}
    assert (chat.request.tool_choice, chat.request.parallel_tool_calls) == (expected, parallel)


class Switched(ByteTemplate):
    variables = frozenset({"messages", "enable_thinking", "reasoning_effort"})


REASONS = toy_model(reasoning=ReasoningFormat())
SWITCHED = replace(REASONS, chat_template=Switched())
ENABLED = {"type": "enabled", "budget_tokens": 2000}
DISABLED = {"type": "disabled"}
BUDGET = "thinking.budget_tokens"


@pytest.mark.parametrize(
    ("model", "fields", "variables", "told"),
    [
        (SWITCHED, {"thinking": ENABLED}, {"enable_thinking": True}, [BUDGET]),
        (SWITCHED, {"thinking": {"type": "adaptive"}}, {"enable_thinking": True}, []),
        (SWITCHED, {"thinking": DISABLED}, {"enable_thinking": False}, []),
        (SWITCHED, {"output_config": {"effort": "high"}}, {"reasoning_effort": "high"}, []),
        (SWITCHED, {}, None, []),
        (REASONS, {"thinking": ENABLED}, None, [BUDGET]),
        (REASONS, {"thinking": DISABLED}, None, ["thinking"]),
        (toy_model(), {"thinking": DISABLED}, None, []),
        (toy_model(), {"thinking": ENABLED}, None, [BUDGET, "thinking"]),
        (toy_model(), {"output_config": {"effort": "low"}}, None, ["output_config.effort"]),
    ],
)
def test_thinking_is_what_the_template_can_be_told(
    model: ServedModel, fields: Any, variables: Any, told: list[str]
) -> None:
    chat, ignored = translated(model, messages=[{"role": "user", "content": "x"}], **fields)
    assert chat.request.chat_template_kwargs == variables
    assert ignored == told


@pytest.mark.parametrize(
    "fields",
    [
        {"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}},
        {"output_format": {"type": "json_schema", "schema": {"type": "object"}}},
    ],
)
def test_a_schema_by_both_of_its_names(fields: Any) -> None:
    chat, ignored = translated(messages=[{"role": "user", "content": "x"}], **fields)
    named = {"name": "output", "schema": {"type": "object"}, "strict": True}
    assert chat.request.response_format == {"type": "json_schema", "json_schema": named}
    assert not ignored
