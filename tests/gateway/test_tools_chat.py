"""Tools in conversations, and the format that a template tells of."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.chat.tools import fallback, knows_tools, template_messages
from gateway.tools.base import Tool
from gateway.tools.choose import NAMES, choose
from tests.gateway.tool_formats import FORMATS, found_calls, numbered, read

TOOLS = [Tool("get", description="Gets it.", parameters={"type": "object", "properties": {"é": {"type": "string"}}})]
HERMES = FORMATS["hermes"]


def call(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


CONVERSATION = [
    {"role": "user", "content": "Get both."},
    {"role": "assistant", "content": None, "tool_calls": [call("1", "get", '{"é": "x"}'), call("2", "put", "{oops")]},
    {"role": "tool", "tool_call_id": "1", "content": "one"},
    {"role": "tool", "tool_call_id": "2", "content": [{"type": "text", "text": "two"}]},
    {"role": "assistant", "content": "Both are here."},
]


def test_template_gets_arguments_as_objects_and_results_with_names() -> None:
    messages = template_messages(CONVERSATION)
    assert messages[1]["content"] == ""
    assert [call["function"]["arguments"] for call in messages[1]["tool_calls"]] == [{"é": "x"}, "{oops"]
    assert [message.get("name") for message in messages] == [None, None, "get", "put", None]
    assert messages[0] == CONVERSATION[0]
    assert CONVERSATION[1]["content"] is None


@pytest.mark.parametrize(("arguments", "expected"), [("", {}), ("[1]", "[1]"), ("3", "3"), ({"a": 1}, {"a": 1})])
def test_arguments_that_are_no_object_stay(arguments: Any, expected: Any) -> None:
    [message] = template_messages([{"role": "assistant", "tool_calls": [call("1", "f", arguments)]}])
    assert message["tool_calls"][0]["function"]["arguments"] == expected


def test_fallback_says_all_in_plain_messages() -> None:
    messages = fallback(CONVERSATION, TOOLS, HERMES)
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user", "assistant"]
    assert {"tool_calls", "tool_call_id"}.isdisjoint(key for message in messages for key in message)
    [described] = [
        json.loads(line) for line in messages[0]["content"].splitlines() if line.startswith('{"name": "get"')
    ]
    assert described == {"name": "get", "description": "Gets it.", "parameters": TOOLS[0].parameters}
    assert [found.name for found in found_calls(read(numbered(HERMES), [messages[2]["content"]]))] == ["get", "put"]
    assert messages[3]["content"] == ("<tool_response>\none\n</tool_response>\n<tool_response>\ntwo\n</tool_response>")


@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
def test_example_of_the_instructions_is_a_call(format: Any) -> None:
    [message] = fallback([{"role": "system", "content": "Be brief."}], TOOLS, format)
    assert message["content"].startswith("Be brief.\n\n")
    example = message["content"].partition("its parameters:\n")[2]
    assert found_calls(read(numbered(format), [example]))[0].name == "the_name"


def test_without_tools_there_are_no_instructions() -> None:
    messages = [{"role": "user", "content": "<tool_response>"}]
    assert fallback(messages, [], HERMES) == messages


@pytest.mark.parametrize(
    ("source", "specials", "architecture", "expected"),
    [
        ("{{ messages }}", ["[TOOL_CALLS]"], "llama", "hermes"),
        ("{% if tools %}<tool_call>", [], None, "hermes"),
        ("{% if tools %}[TOOL_CALLS]", [], "llama", "mistral"),
        ("{% if tools %}<|python_tag|>", [], "llama", "llama3_json"),
        ("{% if tools %}<|tool_call_start|>", [], None, "pythonic"),
        ("{% if tools %}[func_name1(params_name1=1)]", [], "llama", "pythonic"),
        ("{% if tools %}", ["[TOOL_CALLS]"], "llama", "mistral"),
        ("{% if tools %}", [], "lfm2", "pythonic"),
        ("{% if tools %}", [], "qwen2", "hermes"),
    ],
)
def test_format_is_told_by_the_template(
    source: str, specials: list[str], architecture: str | None, expected: str
) -> None:
    assert choose(source, specials, architecture, None).name == expected
    assert knows_tools(source) is ("tools" in source)


@pytest.mark.parametrize("name", NAMES)
def test_format_can_be_named(name: str) -> None:
    assert choose("{% if tools %}<tool_call>", [], None, name).name == name


def test_unknown_name_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="hermes, llama3_json, mistral, pythonic"):
        choose("", [], None, "xml")


def test_variants_are_told_by_the_template() -> None:
    by_name = choose("{% if tools %}[TOOL_CALLS]{{ name }}[ARGS]", [], None, None)
    assert by_name.render([]) == ""
    assert choose("{% if tools %}<|python_start|>", [], None, None).render([]) == "<|python_start|>[]<|python_end|>"
