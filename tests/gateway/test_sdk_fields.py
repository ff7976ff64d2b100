"""Every field of the SDK's types of requests is honoured, refused by its name, or told as without effect."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass, field
from typing import Any, get_type_hints

import msgspec
import pytest
from openai.types import completion_create_params as completion
from openai.types import shared_params
from openai.types.chat import (
    ChatCompletionAssistantMessageParam,
    ChatCompletionContentPartTextParam,
    ChatCompletionDeveloperMessageParam,
    ChatCompletionFunctionToolParam,
    ChatCompletionMessageFunctionToolCallParam,
    ChatCompletionStreamOptionsParam,
    ChatCompletionSystemMessageParam,
    ChatCompletionToolMessageParam,
    ChatCompletionUserMessageParam,
)
from openai.types.chat import completion_create_params as chat
from openai.types.chat.chat_completion_message_function_tool_call_param import Function
from openai.types.shared_params.response_format_json_schema import JSONSchema

from tests.fixtures.fakes import MODEL, ByteTemplate, FakeEngine, client_of, toy_model, toy_services

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HI: list[Any] = [{"role": "user", "content": "hi"}]
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "f", "description": "d", "parameters": {"type": "object"}, "strict": False},
}
CALL: dict[str, Any] = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TALK: list[Any] = [
    {"role": "system", "content": "s"},
    {"role": "developer", "content": "d"},
    {"role": "user", "content": [{"type": "text", "text": "hi"}]},
    {"role": "assistant", "content": "a", "tool_calls": [CALL]},
    {"role": "tool", "content": "r", "tool_call_id": "c1"},
    {"role": "assistant", "content": None, "refusal": "no"},
    {"role": "user", "content": "hi"},
]
FORM = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "integer"}}}

HONOURED = "the engine is asked for something else, or the answer changes"
TOLD = "named in x-headrace-ignored"
LABEL = "names something, or asks for less than is done anyway"


@dataclass(frozen=True)
class Case:
    """What a value that asks for something leads to; a number: refused with this status."""

    value: Any
    outcome: str | int = HONOURED
    beside: dict[str, Any] = field(default_factory=dict)  # in the request with the field and in that without


STREAM = {"stream": True}
WITH_TOOLS = {"tools": [TOOL]}
FORCED = {"tools": [TOOL], "tool_choice": "required"}
TALKING = {"messages": TALK, "tools": [TOOL]}
UNANSWERED = {"messages": [*TALK[:4], TALK[-1]], "tools": [TOOL]}  # but for its id, nothing names the call
STRUCTURED = {"response_format": FORM}

SAMPLING = {
    "frequency_penalty": Case(0.5),
    "logit_bias": Case({"5": 1.0}),
    "max_tokens": Case(3),
    "model": Case("other", 404),
    "n": Case(2),
    "presence_penalty": Case(0.5),
    "seed": Case(7),
    "stop": Case("l"),
    "stream": Case(True),
    "stream_options": Case({"include_usage": True}, beside=STREAM),
    "stream_options.include_usage": Case(True, beside=STREAM),
    "stream_options.include_obfuscation": Case(True, TOLD, beside=STREAM),
    "temperature": Case(0.5),
    "top_p": Case(0.5),
    "user": Case("u", TOLD),
}

COMPLETION_CASES: dict[str, Case] = SAMPLING | {
    "best_of": Case(2),
    "echo": Case(True),
    "logprobs": Case(1),
    "prompt": Case("other"),
    "suffix": Case("x", 400),  # of a model that was not trained to fill in
}

CHAT_CASES: dict[str, Case] = SAMPLING | {
    "audio": Case({"voice": "alloy", "format": "wav"}, 501),
    "function_call": Case("auto", 501),
    "functions": Case([{"name": "f"}], 501),
    "logprobs": Case(True),
    "max_completion_tokens": Case(3),
    "messages": Case(TALK),
    "metadata": Case({"a": "b"}, TOLD),
    "modalities": Case(["text", "audio"], 501),
    "moderation": Case({"model": "m"}, 501),
    "parallel_tool_calls": Case(False, beside=FORCED),
    "prediction": Case({"type": "content", "content": "x"}, TOLD),
    "prompt_cache_key": Case("k", TOLD),
    "prompt_cache_options": Case({"mode": "explicit"}, TOLD),
    "prompt_cache_retention": Case("24h", TOLD),
    "reasoning_effort": Case("low", TOLD),  # of a template that does not read it
    "response_format": Case({"type": "json_object"}),
    "response_format.type": Case("yaml", 400, beside=STRUCTURED),
    "response_format.json_schema": Case({"name": "y", "schema": {"type": "null"}}, beside=STRUCTURED),
    "response_format.json_schema.description": Case("d", TOLD, beside=STRUCTURED),
    "response_format.json_schema.name": Case("y", LABEL, beside=STRUCTURED),
    "response_format.json_schema.schema": Case({"type": "null"}, beside=STRUCTURED),
    "response_format.json_schema.strict": Case(False, LABEL, beside=STRUCTURED),
    "safety_identifier": Case("s", TOLD),
    "service_tier": Case("flex", TOLD),
    "store": Case(True, TOLD),
    "tool_choice": Case("none", beside=WITH_TOOLS),
    "tool_choice.type": Case("custom", 501, beside={"tools": [TOOL], "tool_choice": {"type": "function"}}),
    "tools": Case([TOOL]),
    "tools[0].type": Case("custom", 501, beside=WITH_TOOLS),
    "tools[0].function": Case({"name": "g"}, beside=WITH_TOOLS),
    "tools[0].function.description": Case("other", beside=WITH_TOOLS),
    "tools[0].function.name": Case("g", beside=WITH_TOOLS),
    "tools[0].function.parameters": Case({"type": "object", "properties": {"a": {}}}, beside=WITH_TOOLS),
    "tools[0].function.strict": Case(True, beside=WITH_TOOLS),
    "tools[0].cache_control": Case({"type": "ephemeral"}, TOLD, beside=WITH_TOOLS),
    "tools[0].function.defer": Case(True, TOLD, beside=WITH_TOOLS),
    "top_logprobs": Case(2, beside={"logprobs": True}),
    "verbosity": Case("low", TOLD),
    "web_search_options": Case({"search_context_size": "low"}, 501),
    # messages
    "messages[0].content": Case("other", beside=TALKING),
    "messages[0].name": Case("n", TOLD, beside=TALKING),  # of a template that does not read it
    "messages[0].role": Case("function", 400, beside=TALKING),
    "messages[1].content": Case("other", beside=TALKING),
    "messages[1].name": Case("n", TOLD, beside=TALKING),
    "messages[1].role": Case("user", beside=TALKING),
    "messages[2].content": Case("other", beside=TALKING),
    "messages[2].content[0].prompt_cache_breakpoint": Case({"mode": "explicit"}, TOLD, beside=TALKING),
    "messages[2].content[0].text": Case("other", beside=TALKING),
    "messages[2].content[0].type": Case("image_url", 400, beside=TALKING),
    "messages[2].name": Case("n", TOLD, beside=TALKING),
    "messages[2].role": Case("system", beside=TALKING),
    "messages[2].refusal": Case("no", TOLD, beside=TALKING),
    "messages[2].tool_call_id": Case("c1", TOLD, beside=TALKING),
    "messages[2].tool_calls": Case([CALL], 400, beside=TALKING),
    "messages[3].audio": Case({"id": "audio_1"}, 501, beside=TALKING),
    "messages[3].content": Case("other", beside=TALKING),
    "messages[3].function_call": Case({"name": "f", "arguments": "{}"}, 501, beside=TALKING),
    "messages[3].name": Case("n", TOLD, beside=TALKING),
    "messages[3].refusal": Case("no", TOLD, beside=TALKING),  # it says something already
    "messages[3].role": Case("nobody", 400, beside=TALKING),
    "messages[3].tool_calls": Case([CALL, CALL], beside=TALKING),
    "messages[3].tool_calls[0].function": Case({"name": "g", "arguments": "{}"}, beside=TALKING),
    "messages[3].tool_calls[0].function.arguments": Case('{"a": 1}', beside=TALKING),
    "messages[3].tool_calls[0].function.name": Case("g", beside=TALKING),
    "messages[3].tool_calls[0].id": Case("c2", LABEL, beside=UNANSWERED),
    "messages[3].tool_calls[0].type": Case("custom", 400, beside=TALKING),
    "messages[4].content": Case("other", beside=TALKING),
    "messages[4].role": Case("user", beside=TALKING),
    "messages[4].tool_call_id": Case("c2", 400, beside=TALKING),
    "messages[5].refusal": Case("never", beside=TALKING),
}

COMPLETION_TYPES: list[tuple[str, Any]] = [
    ("", completion.CompletionCreateParamsNonStreaming),
    ("", completion.CompletionCreateParamsStreaming),
    ("stream_options.", ChatCompletionStreamOptionsParam),
]
CHAT_TYPES: list[tuple[str, Any]] = [
    ("", chat.CompletionCreateParamsNonStreaming),
    ("", chat.CompletionCreateParamsStreaming),
    ("stream_options.", ChatCompletionStreamOptionsParam),
    ("response_format.", shared_params.ResponseFormatJSONSchema),
    ("response_format.json_schema.", JSONSchema),
    ("tools[0].", ChatCompletionFunctionToolParam),
    ("tools[0].function.", shared_params.FunctionDefinition),
    ("messages[0].", ChatCompletionSystemMessageParam),
    ("messages[1].", ChatCompletionDeveloperMessageParam),
    ("messages[2].", ChatCompletionUserMessageParam),
    ("messages[2].content[0].", ChatCompletionContentPartTextParam),
    ("messages[3].", ChatCompletionAssistantMessageParam),
    ("messages[3].tool_calls[0].", ChatCompletionMessageFunctionToolCallParam),
    ("messages[3].tool_calls[0].function.", Function),
    ("messages[4].", ChatCompletionToolMessageParam),
]


@pytest.mark.parametrize(("cases", "types"), [(CHAT_CASES, CHAT_TYPES), (COMPLETION_CASES, COMPLETION_TYPES)])
def test_every_field_has_a_case(cases: dict[str, Case], types: list[tuple[str, Any]]) -> None:
    fields = {prefix + name for prefix, kind in types for name in get_type_hints(kind)}
    assert fields <= cases.keys()


def changed(body: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    body = copy.deepcopy(body)
    *way, last = [int(step) if step.isdigit() else step for step in re.findall(r"\w+", path)]
    place: Any = body
    for step in way:
        place = place.setdefault(step, {}) if isinstance(place, dict) else place[step]
    place[last] = value
    return body


@dataclass(frozen=True)
class Outcome:
    status: int
    param: str | None
    told: list[str]
    effect: Any


async def outcome_of(path: str, body: dict[str, Any]) -> Outcome:
    engine = FakeEngine()
    async with client_of(toy_services(engine)) as client:
        answer = await client.post(path, json=body)
    param = answer.json()["error"]["param"] if answer.status_code >= 400 else None
    told = [name for name in answer.headers.get("x-headrace-ignored", "").split(", ") if name]
    return Outcome(answer.status_code, param, told, (msgspec.to_builtins(engine.submitted), answer.content))


async def assert_not_silent(path: str, base: dict[str, Any], name: str, case: Case) -> None:
    before = await outcome_of(path, base)
    after = await outcome_of(path, changed(base, name, case.value))
    if isinstance(case.outcome, int):
        assert (after.status, after.param) == (case.outcome, name)
        return
    assert after.status == 200, after
    assert (name in after.told, name in before.told) == (case.outcome == TOLD, False)
    assert (after.effect != before.effect) == (case.outcome == HONOURED)


@pytest.mark.parametrize("name", CHAT_CASES)
async def test_no_field_of_a_chat_is_silent(name: str) -> None:
    case = CHAT_CASES[name]
    await assert_not_silent(CHAT, {"model": MODEL, "messages": HI, **case.beside}, name, case)


@pytest.mark.parametrize("name", COMPLETION_CASES)
async def test_no_field_of_a_completion_is_silent(name: str) -> None:
    case = COMPLETION_CASES[name]
    await assert_not_silent(COMPLETIONS, {"model": MODEL, "prompt": "hi", **case.beside}, name, case)


@pytest.mark.parametrize(
    ("part", "param"),
    [
        ({"type": "image_url", "image_url": {"url": "data:"}}, "messages[0].content[0].type"),
        ({"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}, "messages[0].content[0].type"),
        ({"type": "file", "file": {"file_id": "f"}}, "messages[0].content[0].type"),
    ],
)
async def test_parts_that_are_no_text_are_refused(part: dict[str, Any], param: str) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": [part]}]}
    outcome = await outcome_of(CHAT, body)
    assert (outcome.status, outcome.param) == (400, param)


ALLOWED = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [TOOL]}}


NAMED_F = {"type": "function", "function": {"name": "f", "odd": 1}, "even": 2}
CHOSEN = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [NAMED_F], "odd": 1}, "even": 2}
CALLED = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}", "odd": 1}}


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"tool_choice": NAMED_F}, ["tool_choice.even", "tool_choice.function.odd"]),
        (
            {"tool_choice": CHOSEN},
            [
                *("tool_choice.even", "tool_choice.allowed_tools.odd"),
                *("tool_choice.allowed_tools.tools[0].even", "tool_choice.allowed_tools.tools[0].function.odd"),
            ],
        ),
        (
            {"messages": [*HI, {"role": "assistant", "tool_calls": [CALLED]}, *HI]},
            ["messages[1].tool_calls[0].function.odd"],
        ),
        (
            {"messages": [*HI, {"role": "assistant", "content": "a", "reasoning_content": "r"}, *HI]},
            ["messages[1].reasoning_content"],
        ),
    ],
)
async def test_names_without_effect_deep_within_are_told(fields: dict[str, Any], told: list[str]) -> None:
    async with client_of(toy_services()) as client:
        answer = await client.post(CHAT, json={"model": MODEL, "messages": HI, "tools": [TOOL], **fields})
    assert answer.status_code == 200
    assert answer.headers["x-headrace-ignored"].split(", ") == told


async def test_reasoning_is_no_news_to_a_template_that_reads_it() -> None:
    class Reading(ByteTemplate):
        source = "{{ message.reasoning_content }}"

    messages = [*HI, {"role": "assistant", "content": "a", "reasoning_content": "r"}, *HI]
    async with client_of(toy_services(model=toy_model(chat_template=Reading()))) as client:
        answer = await client.post(CHAT, json={"model": MODEL, "messages": messages})
    assert (answer.status_code, answer.headers.get("x-headrace-ignored")) == (200, None)


@pytest.mark.parametrize("choice", ["none", "required", {"type": "function", "function": {"name": "f"}}, ALLOWED])
async def test_every_choice_of_tools_is_honoured(choice: Any) -> None:
    base = {"model": MODEL, "messages": HI, "tools": [TOOL]}
    assert (await outcome_of(CHAT, {**base, "tool_choice": choice})).effect != (await outcome_of(CHAT, base)).effect


ELSEWHERE = [
    *(("regex", "a", "structured_outputs.regex"), ("ebnf", "a", "structured_outputs.grammar")),
    *(("grammar", "a", "structured_outputs.grammar"), ("json_schema", {}, "structured_outputs.json")),
    *(("repeat_penalty", 1.1, "repetition_penalty"), ("min_new_tokens", 2, "min_tokens")),
]


@pytest.mark.parametrize(
    ("name", "value", "instead"),
    [
        *ELSEWHERE,
        *((name, 5, "max_completion_tokens") for name in ("max_output_tokens", "max_new_tokens", "n_predict")),
        *((name, "hi", "messages") for name in ("input", "instructions", "system")),
        ("text", {"format": {"type": "json_object"}}, "response_format"),
    ],
)
async def test_other_names_of_a_chats_fields_are_refused_with_what_to_use(name: str, value: Any, instead: str) -> None:
    await check_refused(CHAT, {"model": MODEL, "messages": HI}, name, value, instead)


@pytest.mark.parametrize(
    ("name", "value", "instead"),
    [
        *ELSEWHERE,
        *((name, 5, "max_tokens") for name in ("max_completion_tokens", "max_output_tokens", "num_predict")),
        *(("messages", HI, "prompt"), ("input", "hi", "prompt")),
    ],
)
async def test_other_names_of_a_completions_fields_too(name: str, value: Any, instead: str) -> None:
    await check_refused(COMPLETIONS, {"model": MODEL, "prompt": "hi"}, name, value, instead)


async def check_refused(path: str, body: dict[str, Any], name: str, value: Any, instead: str) -> None:
    async with client_of(toy_services()) as client:
        answer = await client.post(path, json={**body, name: value})
        unset = await client.post(path, json={**body, name: None})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, name, "unsupported_parameter")
    assert error["message"].endswith(f"use {instead}.")
    assert (unset.status_code, unset.headers.get("x-headrace-ignored")) == (200, None)
