"""Every field of a request is honoured, refused by its name, or told as without effect; and what errors name."""

from typing import Any, get_type_hints

import pytest
from openai.types.responses.response_create_params import ResponseCreateParamsNonStreaming
from openai.types.responses.response_input_item_param import ResponseInputItemParam
from openai.types.responses.tool_param import ToolParam

from gateway.chat.jinja import JinjaTemplate
from gateway.responses.convert import HOSTED_TOOLS, INCLUDES
from gateway.responses.items import HOSTED_ITEMS
from tests.fixtures.fakes import MODEL, ByteTokenizer, FakeEngine, Script, toy_model, toy_ready
from tests.gateway.responses_api import HELLO, WEATHER, prompt_of, raw, services_of

REFUSED: dict[str, tuple[Any, int]] = {
    "access_programs": ({"cyber": "standard"}, 501),
    "context_management": ([{"type": "compaction"}], 501),
    "conversation": ("conv_1", 501),
    "moderation": ({"model": "m"}, 501),
    "previous_response_id": ("resp_none", 404),
    "prompt": ({"id": "pmpt_1"}, 501),
}
TOLD: dict[str, Any] = {
    "background_options": {"completion_window": "2h"},
    "image": {"context_compression": "enabled"},
    "max_tool_calls": 3,
    "prompt_cache_key": "k",
    "prompt_cache_options": {"mode": "explicit"},
    "prompt_cache_retention": "24h",
    "safety_identifier": "s",
    "service_tier": "flex",
    "stream_options": {"include_obfuscation": True},
    "user": "u",
}
# With what each changes in the answer, or in what the engine is asked; None: a test of its own.
HONOURED: dict[str, tuple[Any, str] | None] = {
    "background": None,
    "include": None,
    "input": None,
    "instructions": ("Be brief.", "instructions"),
    "max_output_tokens": (3, "max_output_tokens"),
    "metadata": ({"a": "b"}, "metadata"),
    "model": (MODEL, "model"),
    "parallel_tool_calls": (False, "parallel_tool_calls"),
    "reasoning": ({"effort": "low"}, "reasoning"),
    "store": (False, "store"),
    "stream": None,
    "temperature": (0.25, "temperature"),
    "text": ({"format": {"type": "json_object"}}, "text"),
    "tool_choice": None,
    "tools": None,
    "top_logprobs": (2, "top_logprobs"),
    "top_p": (0.5, "top_p"),
    "truncation": ("auto", "truncation"),
}


def test_no_field_of_the_sdk_is_silent() -> None:
    fields = set(get_type_hints(ResponseCreateParamsNonStreaming))
    assert fields == REFUSED.keys() | TOLD.keys() | HONOURED.keys()


def literals(union: Any) -> set[str]:
    """The types of a union's members."""
    hints = [get_type_hints(member).get("type") for member in union.__args__]
    return {name for hint in hints for name in _names(hint)}


def _names(hint: Any) -> list[str]:
    return [
        name for each in getattr(hint, "__args__", ()) for name in ([each] if isinstance(each, str) else _names(each))
    ]


def test_every_kind_of_item_and_tool_is_known() -> None:
    items = {"message", "function_call", "function_call_output", "reasoning", "item_reference"}
    assert literals(ResponseInputItemParam) == HOSTED_ITEMS | items
    assert literals(ToolParam) == HOSTED_TOOLS | {"function"}


async def asked(engine: FakeEngine | None = None, served: Any = None, **fields: Any) -> Any:
    async with raw(services_of(engine, served)) as client:
        return await client.post("/v1/responses", json={**HELLO, **fields})


@pytest.mark.parametrize("name", REFUSED)
async def test_refused(name: str) -> None:
    value, status = REFUSED[name]
    answer = await asked(**{name: value})
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, name)


@pytest.mark.parametrize("name", TOLD)
async def test_told(name: str) -> None:
    answer = await asked(**{name: TOLD[name]}, stream=name == "stream_options")
    assert answer.status_code == 200
    assert answer.headers["x-headrace-ignored"].partition(".")[0] == name


@pytest.mark.parametrize("name", [name for name, value in HONOURED.items() if value is not None])
async def test_honoured(name: str) -> None:
    expected = HONOURED[name]
    assert expected is not None
    answer = await asked(**{name: expected[0]})
    shown = answer.json()[expected[1]]
    assert answer.status_code == 200
    assert {**shown, **expected[0]} == shown if isinstance(shown, dict) else shown == expected[0]


F: dict[str, Any] = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": False}
CALLS = {"tools": [F], "tool_choice": "required"}


@pytest.mark.parametrize(
    ("name", "value", "beside"),
    [
        *(("input", "other", {}), ("instructions", "Be brief.", {}), ("max_output_tokens", 3, {}), ("tools", [F], {})),
        *(("temperature", 0.25, {}), ("top_p", 0.5, {}), ("top_logprobs", 2, {})),
        *(("include", ["message.output_text.logprobs"], {}), ("text", {"format": {"type": "json_object"}}, {})),
        *(("tool_choice", "required", {"tools": [F]}), ("parallel_tool_calls", False, CALLS)),
    ],
)
async def test_the_engine_is_asked_for_something_else(name: str, value: Any, beside: dict[str, Any]) -> None:
    without, with_it = FakeEngine(), FakeEngine()
    await asked(without, **beside)
    await asked(with_it, **{**beside, name: value})
    [before], [after] = without.submitted, with_it.submitted
    assert (before.prompt, before.params) != (after.prompt, after.params)


async def test_what_the_engine_is_asked() -> None:
    engine = FakeEngine()
    await asked(engine, max_output_tokens=7, temperature=0.25, top_p=0.5, top_k=3, seed=11, top_logprobs=2)
    [submit] = engine.submitted
    params = submit.params
    assert (params.max_tokens, params.temperature, params.top_p, params.top_k) == (7, 0.25, 0.5, 3)
    assert (params.logprobs, submit.seeds) == (2, [11])


async def test_effort_reaches_a_template_that_reads_it() -> None:
    source = "{{ reasoning_effort }}{% for message in messages %}{{ message.content }}{% endfor %}"
    engine = FakeEngine()
    template = JinjaTemplate(source, Marking(), {})
    answer = await asked(engine, toy_model(chat_template=template), reasoning={"effort": "low", "summary": "auto"})
    assert answer.headers["x-headrace-ignored"] == "reasoning.summary"
    assert prompt_of(engine).startswith("low")
    assert (await asked(reasoning={"effort": "low"})).headers["x-headrace-ignored"] == "reasoning.effort"


class Marking(ByteTokenizer):
    def encode_marked(self, text: str, mark: str) -> list[int]:
        return self.encode(text.replace(mark, ""))


MANY: list[Any] = [{"role": "user", "content": "x"}] * 10_001
ERRORS: list[tuple[dict[str, Any], int, str | None, str | None]] = [
    ({"input": None}, 400, "input", "missing_required_parameter"),
    ({"input": []}, 400, "input", None),
    ({"input": [{"role": "tool", "content": "x"}]}, 400, "input[0].role", None),
    ({"input": [{"role": "user"}]}, 400, "input[0].content", "missing_required_parameter"),
    ({"input": [{"role": "user", "content": []}]}, 400, "input[0].content", None),
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, 400, "input[0].content[0].type", None),
    ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, 400, "input[0].content[0].text", None),
    ({"input": [{"type": "teapot"}]}, 400, "input[0].type", "invalid_value"),
    ({"input": [{"type": "web_search_call"}]}, 501, "input[0].type", "not_implemented"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, 404, "input[0].id", "item_not_found"),
    ({"input": [{"type": "function_call", "name": "f"}]}, 400, "input[0].call_id", None),
    ({"input": [{"type": "function_call_output", "call_id": "c", "output": ""}]}, 400, "input[0].call_id", None),
    ({"input": MANY}, 400, "input", "request_too_long"),
    ({"input": "x" * 5000}, 400, "input", "context_length_exceeded"),
    ({"input": "hi", "max_output_tokens": 0}, 400, "max_output_tokens", "value_out_of_range"),
    ({"max_output_tokens": 5000}, 400, "max_output_tokens", "context_length_exceeded"),
    ({"temperature": 3}, 400, "temperature", "value_out_of_range"),
    ({"top_logprobs": 21}, 400, "top_logprobs", "value_out_of_range"),
    ({"model": "other"}, 404, "model", "model_not_found"),
    ({"metadata": {str(number): "" for number in range(17)}}, 400, "metadata", "value_out_of_range"),
    ({"metadata": {"a": "x" * 513}}, 400, "metadata.a", "value_out_of_range"),
    ({"include": ["nonsense"]}, 400, "include[0]", "invalid_value"),
    ({"background": True, "store": False}, 400, "background", "conflicting_parameters"),
    ({"background": True, "stream": True}, 501, "stream", "not_implemented"),
    ({"stream_options": {}}, 400, "stream_options", None),
    ({"truncation": "some"}, 400, "truncation", "invalid_value"),
    ({"tools": [{"type": "web_search"}]}, 501, "tools[0].type", "not_implemented"),
    ({"tools": [{"type": "teapot"}]}, 400, "tools[0].type", "invalid_value"),
    ({"tools": [{"name": "f"}]}, 400, "tools[0].type", "missing_required_parameter"),
    ({"tools": [{"type": "function"}]}, 400, "tools[0].name", "missing_required_parameter"),
    ({"tools": [{"type": "function", "name": "a b"}]}, 400, "tools[0].name", "invalid_value"),
    ({"tools": [WEATHER, WEATHER]}, 400, "tools[1].name", "invalid_value"),
    ({"tool_choice": "required"}, 400, "tool_choice", "invalid_value"),
    ({"tools": [WEATHER], "tool_choice": {"type": "function"}}, 400, "tool_choice.name", None),
    ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "f"}}, 400, "tool_choice.name", None),
    ({"tools": [WEATHER], "tool_choice": {"type": "mcp"}}, 501, "tool_choice.type", "not_implemented"),
    (
        {
            "tools": [WEATHER],
            "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]},
        },
        400,
        "tool_choice.tools[0].name",
        "invalid_value",
    ),
    ({"text": {"format": {"type": "yaml"}}}, 400, "text.format.type", "invalid_value"),
    ({"text": {"format": {"type": "json_schema", "schema": {}}}}, 400, "text.format.name", None),
    ({"text": {"format": {"type": "json_schema", "name": "x"}}}, 400, "text.format.schema", None),
    ({"reasoning": {"effort": "immense"}}, 400, "reasoning.effort", "invalid_value"),
    ({"tools": [WEATHER] * 129}, 400, "tools", "value_out_of_range"),
    ({"input": [{"role": "user", "content": [{"type": "text", "text": ""}] * 10_001}]}, 400, "input", None),
    (
        {"text": {"format": {"type": "json_object"}}, "structured_outputs": {"regex": "a"}},
        400,
        "structured_outputs.regex",
        "conflicting_parameters",
    ),
]


@pytest.mark.parametrize(("fields", "status", "param", "code"), ERRORS, ids=lambda value: str(value)[:60])
async def test_errors(fields: dict[str, Any], status: int, param: str | None, code: str | None) -> None:
    answer = await asked(**fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param), error
    assert code is None or error["code"] == code
    assert "messages" not in error["message"] and "response_format" not in error["message"]
    assert "function." not in error["message"]


@pytest.mark.parametrize("name", [name for name in INCLUDES if not name.endswith(("logprobs", "encrypted_content"))])
async def test_what_cannot_be_included(name: str) -> None:
    answer = await asked(include=[name])
    assert (answer.status_code, answer.json()["error"]["param"]) == (501, "include[0]")


async def test_fields_without_effect_inside_others_are_told() -> None:
    answer = await asked(
        input=[{"role": "user", "content": [{"type": "input_text", "text": "x", "odd": 1}], "strange": 1}],
        tools=[{**WEATHER, "defer_loading": True}],
        text={"verbosity": "low"},
        include=["reasoning.encrypted_content"],
    )
    told = set(answer.headers["x-headrace-ignored"].split(", "))
    assert told == {
        *("text.verbosity", "include[0]", "tools[0].defer_loading"),
        *("input[0].strange", "input[0].content[0].odd"),
    }


async def test_names_that_nobody_knows_in_text_and_reasoning_are_told() -> None:
    form = {"type": "json_schema", "name": "x", "schema": {"type": "object"}, "description": "d", "odd": 1}
    answer = await asked(text={"format": form, "tone": "kind"}, reasoning={"context": "auto"})
    told = set(answer.headers["x-headrace-ignored"].split(", "))
    assert told == {"text.tone", "text.format.description", "text.format.odd", "reasoning.context"}


async def test_names_that_nobody_knows_in_a_choice_of_tools_are_told() -> None:
    tools = [{"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": False}]
    named = {"type": "function", "name": "f", "odd": 1}
    answer = await asked(tools=tools, tool_choice=named)
    assert answer.headers["x-headrace-ignored"] == "tool_choice.odd"
    answer = await asked(tools=tools, tool_choice={"type": "allowed_tools", "mode": "auto", "tools": [named]})
    assert answer.headers["x-headrace-ignored"] == "tool_choice.tools[0].odd"


ELSEWHERE = {
    "max_tokens": (5, "max_output_tokens"),
    "max_completion_tokens": (5, "max_output_tokens"),
    "max_new_tokens": (5, "max_output_tokens"),
    "messages": ([{"role": "user", "content": "hi"}], "input"),
    "system": ("s", "instructions"),
    "regex": ("a", "structured_outputs.regex"),
    "repeat_penalty": (1.1, "repetition_penalty"),
    "response_format": ({"type": "json_object"}, "text.format"),
    "guided_json": ({}, "structured_outputs.json"),
    "guided_regex": ("a", "structured_outputs.regex"),
    "guided_choice": (["a"], "structured_outputs.choice"),
    "guided_grammar": ("a", "structured_outputs.grammar"),
}


@pytest.mark.parametrize("name", ELSEWHERE)
async def test_fields_of_other_apis_are_refused_with_what_to_use(name: str) -> None:
    value, instead = ELSEWHERE[name]
    answer = await asked(**{name: value})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, name, "unsupported_parameter")
    assert error["message"].endswith(f"use {instead}.")
    assert (await asked(**{name: None})).status_code == 200


@pytest.mark.parametrize(
    ("fields", "quoted"),
    [
        ({"model": "messages[99]"}, "messages[99]"),
        ({"model": "response_format and messages"}, "response_format and messages"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "messages[7]"}}, "messages[7]"),
    ],
)
async def test_what_an_error_quotes_stays_as_it_was(fields: dict[str, Any], quoted: str) -> None:
    answer = await asked(**fields)
    assert answer.status_code in (400, 404)
    assert f"'{quoted}'" in answer.json()["error"]["message"]


async def test_names_without_effect_are_not_taken_for_paths() -> None:
    answer = await asked(chat_template_kwargs={"messages[99]": 1, **{f"k{number}": 1 for number in range(100)}})
    assert answer.status_code == 200
    assert "messages[99]" in answer.headers["x-headrace-ignored"]


async def test_counting_tokens_tells_and_refuses_as_answering_does() -> None:
    body = {**HELLO, "user": "u"}
    async with raw(services_of()) as client:
        counted = await client.post("/v1/responses/input_tokens", json=body)
    assert (counted.status_code, counted.headers["x-headrace-ignored"]) == (200, "user")
    async with raw(services_of(strict=True)) as client:
        refused = await client.post("/v1/responses/input_tokens", json=body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "user")


async def test_forced_and_allowed_tools() -> None:
    for choice in (
        "required",
        {"type": "function", "name": "weather"},
        {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "weather"}]},
    ):
        engine = FakeEngine()
        answer = await asked(engine, tools=[WEATHER], tool_choice=choice)
        assert engine.submitted[0].params.grammar
        assert answer.json()["tool_choice"] == choice
        assert answer.json()["tools"] == [WEATHER]


async def test_truncation_does_not_part_a_call_from_its_output() -> None:
    call = {"type": "function_call", "call_id": "c", "name": "weather", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "c", "output": "sun"}
    said = [{"role": "user", "content": text} for text in ("first" * 5, "second", "last")]
    talk = [said[0], call, said[1], output, {"role": "assistant", "content": "a"}, said[2]]
    engine = FakeEngine(lambda submit, choice: Script.of("ok"), ready=toy_ready(max_model_len=40))
    answer = await asked(engine, input=talk, max_output_tokens=4, truncation="auto")
    assert answer.status_code == 200, answer.text
    assert prompt_of(engine) == "<|user|>last<|end|><|assistant|>"


async def test_truncation_leaves_out_the_oldest_turns() -> None:
    talk = [{"role": "developer", "content": "rules"}]
    for number in range(8):
        talk += [{"role": "user", "content": f"u{number}"}, {"role": "assistant", "content": f"a{number}"}]
    talk.append({"role": "user", "content": "last"})
    engine = FakeEngine(lambda submit, choice: Script.of("ok"), ready=toy_ready(max_model_len=32))
    refused = await asked(engine, input=talk, max_output_tokens=4)
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    answer = await asked(engine, input=talk, max_output_tokens=4, truncation="auto")
    assert answer.status_code == 200
    kept = "<|user|>u7<|end|><|assistant|>a7<|end|><|user|>last<|end|>"
    assert prompt_of(engine) == f"<|system|>rules<|end|>{kept}<|assistant|>"
    too_long = await asked(engine, input="x" * 100, truncation="auto")
    assert (too_long.status_code, too_long.json()["error"]["param"]) == (400, "input")
