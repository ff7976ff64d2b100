"""Every field that Anthropic's clients can send is honoured, refused by name, or told as without effect."""

from typing import Any, get_type_hints

import msgspec
import pytest
from anthropic.types import (
    MessageCountTokensParams,
    OutputConfigParam,
    TextBlockParam,
    ThinkingConfigAdaptiveParam,
    ThinkingConfigBetweenToolsParam,
    ThinkingConfigEnabledParam,
    ToolChoiceToolParam,
    ToolParam,
    ToolResultBlockParam,
    ToolUseBlockParam,
)
from anthropic.types.message_create_params import MessageCreateParamsNonStreaming

from tests.fixtures.fakes import MODEL, FakeEngine, Script, client_of, toy_services

TOOL: dict[str, Any] = {"name": "f", "input_schema": {"type": "object"}}
CALL: dict[str, Any] = {"type": "tool_use", "id": "c1", "name": "f", "input": {}}
RESULT: dict[str, Any] = {"type": "tool_result", "tool_use_id": "c1", "content": "x"}
TEXT: dict[str, Any] = {"type": "text", "text": "hi"}
BODY: dict[str, Any] = {"model": MODEL, "max_tokens": 50, "messages": [{"role": "user", "content": [TEXT]}]}

# What takes effect as it stands, and is neither refused nor told. All other fields must be one of the two.
HONOURED = {
    "model",
    "max_tokens",
    "messages",
    "output_config",
    "stop_sequences",
    "stream",
    "system",
    "temperature",
    "tool_choice",
    "tools",
    "top_k",
    "top_p",
}
SAMPLES: dict[str, Any] = {
    "cache_control": {"type": "ephemeral"},
    "container": "container_1",
    "diagnostics": {"previous_message_id": "msg_1"},
    "inference_geo": "eu",
    "metadata": {"user_id": "me"},
    "output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}},
    "service_tier": "standard_only",
    "speed": "fast",
    "stop_sequences": ["x"],
    "stream": False,
    "system": "Be kind.",
    "thinking": {"type": "enabled", "budget_tokens": 2000},
    "tool_choice": {"type": "auto"},
    "tools": [TOOL],
    "user_profile_id": "u",
    "workspace_id": "w",
}


async def answer_to(body: dict[str, Any], path: str = "/v1/messages") -> tuple[int, str, list[str]]:
    """Status, message of the error, fields told as ignored."""
    async with client_of(toy_services()) as client:
        response = await client.post(path, json=body)
    message = response.json().get("error", {}).get("message", "")
    return response.status_code, message, response.headers.get("x-headrace-ignored", "").split(", ")


def names_of(kind: Any) -> list[str]:
    return sorted(get_type_hints(kind))


async def assert_not_silent(body: dict[str, Any], name: str, honoured: bool, path: str = "/v1/messages") -> None:
    status, message, ignored = await answer_to(body, path)
    told = any(each == name or each.startswith(name + ".") for each in ignored)
    if honoured:
        assert (status, told) == (200, False), (message, ignored)
    else:
        assert told if status == 200 else status in (400, 501) and name in message, (status, message, ignored)


@pytest.mark.parametrize("name", names_of(MessageCreateParamsNonStreaming))
async def test_no_field_is_silent(name: str) -> None:
    body = {**BODY, name: BODY.get(name, SAMPLES.get(name))}
    await assert_not_silent(body, name, name in HONOURED)


@pytest.mark.parametrize("name", names_of(MessageCountTokensParams))
async def test_no_field_is_silent_where_tokens_are_counted(name: str) -> None:
    body = {field: BODY[field] for field in ("model", "messages")}
    body[name] = BODY.get(name, SAMPLES.get(name))
    await assert_not_silent(body, name, name in HONOURED, "/v1/messages/count_tokens")


def with_tool(field: str, value: Any) -> dict[str, Any]:
    return {**BODY, "tools": [{**TOOL, field: value}]}


TOOL_SAMPLES: dict[str, Any] = {
    "allowed_callers": ["code_execution_20250825"],
    "cache_control": {"type": "ephemeral"},
    "defer_loading": True,
    "description": "A function.",
    "eager_input_streaming": False,
    "input_examples": [{}],
    "input_schema": {"type": "object"},
    "name": "g",
    "strict": True,
    "type": "custom",
}


@pytest.mark.parametrize("name", names_of(ToolParam))
async def test_no_field_of_a_tool_is_silent(name: str) -> None:
    honoured = name in ("description", "input_schema", "name", "strict", "type")
    await assert_not_silent(with_tool(name, TOOL_SAMPLES[name]), f"tools[0].{name}", honoured)


def conversation(text: dict[str, Any], call: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    turns = [("user", text), ("assistant", call), ("user", result)]
    return {**BODY, "tools": [TOOL], "messages": [{"role": role, "content": [block]} for role, block in turns]}


BLOCK_SAMPLES: dict[str, Any] = {
    "cache_control": {"type": "ephemeral"},
    "caller": {"type": "code_execution_20250825", "tool_id": "t"},
    "citations": [{"type": "char_location"}],
    "is_error": True,
    "toolset_name": "browser",
}


@pytest.mark.parametrize(("index", "kind"), [(0, TextBlockParam), (1, ToolUseBlockParam), (2, ToolResultBlockParam)])
async def test_no_field_of_a_block_is_silent(index: int, kind: Any) -> None:
    for name in names_of(kind):
        blocks = [dict(TEXT), dict(CALL), dict(RESULT)]
        blocks[index].setdefault(name, BLOCK_SAMPLES.get(name))
        honoured = name in ("content", "id", "input", "is_error", "name", "text", "tool_use_id", "type")
        await assert_not_silent(conversation(*blocks), f"messages[{index}].content[0].{name}", honoured)


@pytest.mark.parametrize(
    ("field", "kind", "sample", "honoured"),
    [
        ("tool_choice", ToolChoiceToolParam, {"type": "tool", "name": "f", "disable_parallel_tool_use": True}, True),
        ("thinking", ThinkingConfigAdaptiveParam, {"type": "adaptive", "display": "omitted"}, False),
        ("thinking", ThinkingConfigEnabledParam, {"type": "enabled", "budget_tokens": 9, "display": None}, False),
        ("thinking", ThinkingConfigBetweenToolsParam, {"type": "between_tools"}, False),
        ("output_config", OutputConfigParam, {"effort": "high", "format": None}, False),
    ],
)
async def test_no_nested_field_is_silent(field: str, kind: Any, sample: dict[str, Any], honoured: bool) -> None:
    assert set(sample) == set(names_of(kind))
    await assert_not_silent({**BODY, "tools": [TOOL], field: sample}, field, honoured)


@pytest.mark.parametrize("kind", ["web_search_20250305", "bash_20250124", "code_execution_20250825"])
async def test_tools_of_the_api_itself_are_refused_by_name(kind: str) -> None:
    async with client_of(toy_services()) as client:
        response = await client.post("/v1/messages", json={**BODY, "tools": [{"type": kind, "name": "x"}]})
    assert response.status_code == 501
    assert f"tools[0].type '{kind}'" in response.json()["error"]["message"]
    assert response.headers["x-should-retry"] == "false"


async def test_fields_that_nobody_knows_are_told() -> None:
    body = msgspec.json.decode(msgspec.json.encode(BODY))
    body |= {"frobnicate": 1, "thinking": {"type": "disabled", "depth": 3}}
    body["messages"][0] |= {"mood": "good"}
    body["messages"][0]["content"][0] |= {"size": 12}
    status, _, ignored = await answer_to(body)
    assert status == 200
    assert {"frobnicate", "thinking.depth", "messages[0].mood", "messages[0].content[0].size"} == set(ignored)


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"messages": []}, 400, "messages must hold"),
        ({"max_tokens": None}, 400, "max_tokens"),
        ({"messages": [{"role": "user", "content": []}]}, 400, "messages[0].content must"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, 400, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, 400, "messages[0].content[0].type 'image'"),
        ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, 400, "takes text only"),
        ({"messages": [{"role": "user", "content": [{"type": "search_result"}]}]}, 501, "'search_result'"),
        ({"messages": [{"role": "user", "content": [CALL]}]}, 400, "cannot stand here"),
        ({"messages": [{"role": "user", "content": [RESULT]}]}, 400, "messages[0].content[0].tool_use_id"),
        ({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": [CALL]}]}, 400, "results"),
        ({"system": [{"type": "image"}]}, 400, "system[0].type"),
        ({"tools": [{"name": "no spaces", "input_schema": {}}]}, 400, "tools[0].name must"),
        ({"tools": [{"name": "f"}]}, 400, "tools[0].input_schema"),
        ({"tools": [TOOL, TOOL]}, 400, "tools[1].name"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "g"}}, 400, "tool_choice.name: there is no tool"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, 400, "tool_choice.name"),
        ({"tool_choice": {"type": "any"}}, 400, "tool_choice asks"),
        (
            with_tool("input_schema", {"type": "nothing"}) | {"tool_choice": {"type": "any"}},
            400,
            "tools[0].input_schema",
        ),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": {"type": "nothing"}}}},
            400,
            "output_config.format.schema",
        ),
        ({"stop_sequences": ["a", ""]}, 400, "stop_sequences[1]"),
        ({"mcp_servers": [{"name": "x"}]}, 501, "mcp_servers"),
        ({"typical_p": 0.5}, 501, "typical_p"),
    ],
)
async def test_a_bad_request_names_its_field(change: dict[str, Any], status: int, words: str) -> None:
    got, message, _ = await answer_to({**BODY, **change})
    assert got == status
    assert words in message


@pytest.mark.parametrize(
    ("name", "value", "instead"),
    [
        ("max_completion_tokens", 5, "max_tokens"),
        ("max_output_tokens", 5, "max_tokens"),
        ("max_new_tokens", 5, "max_tokens"),
        ("instructions", "s", "system"),
        ("input", "hi", "messages"),
        ("stop", ["a"], "stop_sequences"),
        ("regex", "a", "structured_outputs.regex"),
        ("response_format", {"type": "json_object"}, "output_config.format"),
        ("guided_json", {}, "structured_outputs.json"),
        ("guided_regex", "a", "structured_outputs.regex"),
    ],
)
async def test_fields_of_other_apis_are_refused_with_what_to_use(name: str, value: Any, instead: str) -> None:
    status, message, _ = await answer_to({**BODY, name: value})
    assert (status, message.endswith(f"{name} is not of this endpoint; use {instead}.")) == (400, True), message


async def test_structured_outputs_are_those_of_a_chat() -> None:
    engine = FakeEngine()
    async with client_of(toy_services(engine)) as client:
        answer = await client.post("/v1/messages", json={**BODY, "structured_outputs": {"regex": "a+"}})
    assert (answer.status_code, "x-headrace-ignored" in answer.headers) == (200, False)
    assert engine.submitted[0].params.grammar
    form = {"format": {"type": "json_schema", "schema": {"type": "object"}}}
    both = {**BODY, "structured_outputs": {"regex": "a+"}, "output_config": form}
    status, message, _ = await answer_to(both)
    assert (status, "structured_outputs.regex" in message) == (400, True)


async def test_sixteen_stop_sequences_and_no_more() -> None:
    stops = [f"stop {number}" for number in range(15)] + ["l"]
    async with client_of(toy_services()) as client:
        answer = await client.post("/v1/messages", json={**BODY, "stop_sequences": stops})
    assert (answer.json()["stop_reason"], answer.json()["stop_sequence"]) == ("stop_sequence", "l")
    status, message, _ = await answer_to({**BODY, "stop_sequences": [*stops, "m"]})
    assert (status, "stop_sequences holds at most 16 strings" in message) == (400, True)


async def test_a_stop_string_does_not_cut_an_enforced_call() -> None:
    """It is told, like all that has no effect."""
    engine = FakeEngine()
    body = BODY | {"tools": [TOOL], "tool_choice": {"type": "any"}, "stop_sequences": ["\n"], "max_tokens": 200}
    engine.script = lambda submit, choice: Script.of('<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>')
    async with client_of(toy_services(engine)) as client:
        answer = await client.post("/v1/messages", json=body)
    assert (answer.json()["stop_reason"], answer.json()["content"][0]["type"]) == ("tool_use", "tool_use"), answer.text
    assert "stop_sequences" in answer.headers["x-headrace-ignored"]
