"""Tools in a chat: what reaches the prompt and the engine, and what an answer with calls looks like on the wire."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from llguidance import LLMatcher

from gateway.answers.reasoning import ReasoningFormat
from tests.fixtures.fakes import MODEL, ByteTokenizer, FakeEngine, Script, client_of, events, toy_model, toy_services

CHAT = "/v1/chat/completions"
HI = {"role": "user", "content": "hi"}
CALL = '<tool_call>\n{"name": "look", "arguments": {"at": "a </tool_call> \\"é\\""}}\n</tool_call>'


def tool(name: str, **function: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]}
    return {"type": "function", "function": {"name": name, "parameters": parameters, **function}}


async def ask(engine: FakeEngine, model: Mapping[str, Any] | None = None, **fields: Any) -> Any:
    services = toy_services(engine, toy_model(**(model or {})))
    async with client_of(services) as client:
        body = {"model": MODEL, "messages": [HI], "tools": [tool("look")], **fields}
        return await client.post(CHAT, json=body)


def saying(text: str) -> FakeEngine:
    return FakeEngine(script=lambda submit, choice: Script.of(text))


def prompt_text(engine: FakeEngine) -> str:
    return ByteTokenizer().decode(engine.submitted[0].prompt, skip_special=False)


async def test_a_call() -> None:
    answer = (await ask(saying(f"Let me see.\n{CALL}"))).json()
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"].strip() == "Let me see."
    (call,) = choice["message"]["tool_calls"]
    assert call["type"] == "function" and call["id"].startswith("call_")
    assert call["function"]["name"] == "look"
    assert json.loads(call["function"]["arguments"]) == {"at": 'a </tool_call> "é"'}


async def test_without_text_the_content_is_null() -> None:
    assert (await ask(saying(CALL))).json()["choices"][0]["message"]["content"] is None


async def test_a_streamed_answer_adds_up_to_the_whole_one() -> None:
    text = f"See: {CALL}\n{CALL}"
    whole = (await ask(saying(text))).json()["choices"][0]
    chunks = events((await ask(saying(text), stream=True)).content)[:-1]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    pieces = [piece for delta in deltas for piece in delta.get("tool_calls", ())]
    calls: list[dict[str, str]] = []
    for piece in pieces:
        if "id" in piece:
            assert piece["index"] == len(calls) and piece["type"] == "function"
            calls.append({"name": piece["function"]["name"], "arguments": ""})
        calls[piece["index"]]["arguments"] += piece["function"].get("arguments", "")
    assert calls == [call["function"] for call in whole["message"]["tool_calls"]] and len(calls) == 2
    assert "".join(delta.get("content", "") for delta in deltas) == whole["message"]["content"]
    assert len(pieces) > 10
    assert chunks[-1]["choices"][0]["finish_reason"] == whole["finish_reason"] == "tool_calls"


async def test_an_answer_cut_in_a_call_is_cut() -> None:
    engine = FakeEngine(script=lambda submit, choice: Script.of(CALL[:50], "length"))
    choice = (await ask(engine)).json()["choices"][0]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["tool_calls"][0]["function"]["arguments"].startswith('{"at"')


@pytest.mark.parametrize("fields", [{"tool_choice": "none"}, {"tools": []}, {"tools": None}])
async def test_where_no_call_is_wanted_text_stays_text(fields: dict[str, Any]) -> None:
    engine = saying(CALL)
    choice = (await ask(engine, **fields)).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (CALL, "stop")
    assert "look" not in prompt_text(engine)


async def test_tools_are_told_to_a_model_whose_template_knows_none() -> None:
    engine = saying("ok")
    await ask(engine, tools=[tool("look", description="Looks at things.")])
    text = prompt_text(engine)
    assert "Looks at things." in text and '"at"' in text and "<tool_call>" in text


async def test_a_round_of_calls_and_results_reaches_the_prompt() -> None:
    engine = saying("ok")
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": "x"}'}}
    turns = [HI, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "c1", "content": "42"}]
    assert (await ask(engine, messages=turns)).status_code == 200
    text = prompt_text(engine)
    assert text.index('{"at": "x"}') < text.index("42")


@pytest.mark.parametrize(
    ("fields", "is_held"),
    [
        ({"tool_choice": "auto"}, False),
        ({"tool_choice": "required"}, True),
        ({"tool_choice": {"type": "function", "function": {"name": "look"}}}, True),
        ({"tools": [tool("look", strict=True)]}, True),
        ({"parallel_tool_calls": False}, True),
        ({"tool_choice": "none", "parallel_tool_calls": False}, False),
        ({"tools": None, "tool_choice": None, "parallel_tool_calls": False}, False),
        ({"tool_choice": "required", "parallel_tool_calls": False}, True),
        ({"response_format": {"type": "json_object"}}, True),
        ({"tools": [tool("a"), tool("b")], "tool_choice": {
            "type": "allowed_tools",
            "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "b"}}]},
        }}, True),
    ],
)  # fmt: skip
async def test_what_holds_the_answer_to_calls(fields: dict[str, Any], is_held: bool) -> None:
    engine = saying("ok")
    assert (await ask(engine, **fields)).status_code == 200
    grammar = engine.submitted[0].params.grammar
    assert (grammar is not None) is is_held
    assert grammar is None or LLMatcher.validate_grammar_with_warnings(grammar)[0] is False


async def test_only_the_named_function_is_told_and_allowed() -> None:
    engine = saying("ok")
    choice = {"type": "function", "function": {"name": "b"}}
    await ask(engine, tools=[tool("a"), tool("b")], tool_choice=choice)
    grammar = engine.submitted[0].params.grammar or ""
    assert '"b"' in grammar.replace("\\", "") and '"a"' not in grammar.replace("\\", "")


async def test_a_wrong_schema_of_a_tool_is_named() -> None:
    bad = tool(
        "look", strict=True, parameters={"type": "object", "properties": {"at": {"type": "array", "uniqueItems": True}}}
    )
    answer = await ask(saying("ok"), tools=[tool("a"), bad], tool_choice="required")
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "tools[1].function.parameters.properties.at.uniqueItems")
    assert "uniqueItems" in error["message"]


async def test_a_tool_that_is_not_strict_may_say_what_cannot_be_enforced() -> None:
    loose = tool("look", parameters={"type": "object", "properties": {"at": {"type": "array", "uniqueItems": True}}})
    assert (await ask(saying("ok"), tools=[loose], tool_choice="required")).status_code == 200


async def test_a_broken_schema_of_any_tool_is_refused() -> None:
    broken = tool("look", parameters={"type": "object", "properties": {"at": {"$ref": "#/$defs/x"}}})
    answer = await ask(saying("ok"), tools=[broken], tool_choice="required")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tools[0].function.parameters")


@pytest.mark.parametrize("strict", [False, True])
async def test_a_number_beyond_all_bounds_in_a_tools_schema_is_a_fault_of_it(strict: bool) -> None:
    parameters = {"type": "object", "properties": {"a": {"type": "integer", "maximum": 10**400}}}
    vast = tool("look", strict=strict, parameters=parameters)
    answer = await ask(saying("ok"), tools=[vast], tool_choice="required")
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "invalid_json_schema")
    assert error["param"].startswith("tools[0].function.parameters") and "out of range" in error["message"]


async def test_a_function_without_parameters_takes_none() -> None:
    engine = saying("ok")
    await ask(engine, tools=[tool("f", parameters={"type": "object", "properties": {}})], tool_choice="required")
    assert '\\"additionalProperties\\": false' in json.dumps(engine.submitted[0].params.grammar)


async def test_a_stop_string_does_not_cut_an_enforced_call() -> None:
    answer = await ask(saying(CALL), tool_choice="required", stop="\n")
    assert answer.json()["choices"][0]["finish_reason"] == "tool_calls"
    assert answer.headers["x-headrace-ignored"] == "stop"


async def test_a_result_belongs_to_a_call() -> None:
    turns = [HI, {"role": "tool", "tool_call_id": "c1", "content": "42"}]
    answer = await ask(saying("ok"), messages=turns)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "messages[1].tool_call_id")


# reasoning

THINKER = {"reasoning": ReasoningFormat()}


async def test_reasoning_has_its_own_fields() -> None:
    engine = saying("<think>\nhm\n</think>\n\nYes.")
    answer = (await ask(engine, THINKER, tools=[])).json()
    message = answer["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"], message["reasoning"]) == ("Yes.", "hm", "hm")
    assert 0 < answer["usage"]["completion_tokens_details"]["reasoning_tokens"] < answer["usage"]["completion_tokens"]


async def test_streamed_reasoning_adds_up() -> None:
    engine = saying("<think>a b</think>Yes.")
    chunks = events((await ask(engine, THINKER, tools=[], stream=True)).content)[:-1]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "a b"
    assert "".join(delta.get("reasoning", "") for delta in deltas) == "a b"
    assert "".join(delta.get("content", "") for delta in deltas) == "Yes."


async def test_reasoning_is_left_out_where_not_wanted() -> None:
    answer = await ask(saying("<think>a</think>Yes."), THINKER, tools=[], include_reasoning=False)
    assert answer.json()["choices"][0]["message"] == {"role": "assistant", "content": "Yes.", "refusal": None}


async def test_reasoning_may_come_before_a_call() -> None:
    message = (await ask(saying(f"<think>a</think>\n{CALL}"), THINKER)).json()["choices"][0]["message"]
    assert message["reasoning_content"] == "a" and len(message["tool_calls"]) == 1


async def test_a_schema_leaves_room_for_reasoning() -> None:
    engine = saying("{}")
    await ask(engine, THINKER, tools=[], response_format={"type": "json_object"})
    grammar = engine.submitted[0].params.grammar or ""
    assert "think" in grammar and LLMatcher.validate_grammar_with_warnings(grammar)[0] is False
