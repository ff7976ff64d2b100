"""response_format and the guided fields: one grammar reaches the engine, or a 400 that names the part at fault."""

from typing import Any

import pytest
from llguidance import LLMatcher

from tests.fixtures.fakes import MODEL, FakeEngine, client_of, toy_services

CHAT = "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}


async def ask(engine: FakeEngine, **fields: Any) -> Any:
    async with client_of(toy_services(engine)) as client:
        return await client.post(CHAT, json={"model": MODEL, "messages": HI, **fields})


def named(schema: Any, **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, **more}}


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_object"}},
        {"response_format": named(SCHEMA, strict=True)},
        {"response_format": named(True)},
        {"structured_outputs": {"json": SCHEMA}},
        {"structured_outputs": {"json": '{"type": "string"}'}},
        {"structured_outputs": {"json_object": True}},
        {"structured_outputs": {"regex": "a+"}},
        {"structured_outputs": {"choice": ["a", 'b "c"', "\n"]}},
        {"structured_outputs": {"grammar": 'start: "a" | "b"'}},
        {"structured_outputs": {"grammar": 'root ::= "a" | "b"'}},
        {"guided_json": SCHEMA},
        {"guided_regex": r"\d{3}"},
        {"guided_choice": ["yes", "no"]},
        {"guided_grammar": 'start: "a"'},
    ],
)
async def test_a_grammar_reaches_the_engine(fields: dict[str, Any]) -> None:
    engine = FakeEngine()
    answer = await ask(engine, **fields)
    assert answer.status_code == 200, answer.text
    grammar = engine.submitted[0].params.grammar
    assert grammar is not None and LLMatcher.validate_grammar_with_warnings(grammar)[0] is False


@pytest.mark.parametrize(
    "fields",
    [{}, {"response_format": {"type": "text"}}, {"structured_outputs": {}}, {"structured_outputs": {"json": None}}],
)
async def test_without_a_form_any_text_will_do(fields: dict[str, Any]) -> None:
    engine = FakeEngine()
    assert (await ask(engine, **fields)).status_code == 200
    assert engine.submitted[0].params.grammar is None


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"response_format": "json"}, "response_format", "object"),
        ({"response_format": {"type": "yaml"}}, "response_format.type", "json_schema"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "Missing"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {}}},
            "response_format.json_schema.name",
            "Missing",
        ),
        ({"response_format": named(None)}, "response_format.json_schema.schema", "Missing"),
        ({"response_format": named(False)}, "response_format.json_schema.schema", "no value"),
        ({"response_format": named({}, strict="x")}, "response_format.json_schema.strict", "boolean"),
        ({"response_format": named({"type": "strin"})}, "response_format.json_schema.schema.type", "strin"),
        (
            {"response_format": named({"$defs": {"b": {"not": {}}}, "properties": {"a": {"$ref": "#/$defs/b"}}})},
            "response_format.json_schema.schema.$defs.b.not",
            "not",
        ),
        (
            {"response_format": named({"properties": {"a": {"items": {"anyOf": [{}, {"uniqueItems": True}]}}}})},
            "response_format.json_schema.schema.properties.a.items.anyOf[1].uniqueItems",
            "uniqueItems",
        ),
        ({"guided_regex": "["}, "guided_regex", "unclosed"),
        ({"guided_regex": ""}, "guided_regex", "non-empty"),
        ({"guided_choice": []}, "guided_choice", "non-empty"),
        ({"guided_choice": ["a", 1]}, "guided_choice", "strings"),
        ({"guided_grammar": "start: foo"}, "guided_grammar", "foo"),
        ({"guided_json": "{"}, "guided_json", "JSON"),
        ({"guided_json": {}, "guided_regex": "a"}, "guided_regex", "Only one"),
        ({"guided_regex": "a+", "allowed_token_ids": [1]}, "allowed_token_ids", "schema"),
        ({"guided_regex": "a+", "min_tokens": 3}, "min_tokens", "schema"),
    ],
)
async def test_what_cannot_be_enforced_is_named(fields: dict[str, Any], param: str, says: str) -> None:
    engine = FakeEngine()
    answer = await ask(engine, **fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param), error
    assert says in error["message"] and not engine.submitted


@pytest.mark.parametrize("kind", ["structural_tag", "disable_any_whitespace"])
async def test_known_forms_that_are_not_built(kind: str) -> None:
    answer = await ask(FakeEngine(), structured_outputs={kind: {"a": 1}})
    assert (answer.status_code, answer.json()["error"]["param"]) == (501, f"structured_outputs.{kind}")
