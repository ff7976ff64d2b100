"""response_format and the guided fields: one grammar reaches the engine, or a 400 that names the part at fault."""

from contextlib import closing
from typing import Any

import pytest
from llguidance import LLMatcher

from gateway.requests import structured
from gateway.requests.grammar_check import CheckLimits, GrammarChecker
from gateway.requests.structured import MAX_GRAMMAR_CHARS, MAX_SCHEMA_DEPTH
from tests.fixtures.fakes import MODEL, FakeEngine, client_of, toy_services

CHAT = "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}

RESPONSE = "response_format.json_schema"
PATTERNS = [{"type": "string", "pattern": f"a.{{{length}}}b"} for length in range(1, 28)]  # exponential in their number


def tool(parameters: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": parameters, **more}}


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


async def test_json_object_with_a_schema_is_held_to_it() -> None:
    engine = FakeEngine()
    assert (await ask(engine, response_format={"type": "json_object", "schema": SCHEMA})).status_code == 200
    assert (await ask(engine, response_format=named(SCHEMA))).status_code == 200
    first, second = engine.submitted
    assert first.params.grammar == second.params.grammar
    refused = await ask(engine, response_format={"type": "json_object", "schema": {"type": "strin"}})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "response_format.schema.type")


@pytest.mark.parametrize(
    ("form", "told"),
    [
        ({"type": "json_object", "bar": 1}, "response_format.bar"),
        ({**named(SCHEMA), "schema": {}}, "response_format.schema"),
        (named(SCHEMA, foo=1, description="d"), "response_format.json_schema.foo, response_format.json_schema.descr"),
        ({"type": "text", "json_schema": {"a": 1}}, "response_format.json_schema"),
    ],
)
async def test_what_has_no_effect_in_a_form_is_told(form: dict[str, Any], told: str) -> None:
    answer = await ask(FakeEngine(), response_format=form)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-headrace-ignored"].startswith(told)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"guided_regex": "[a-"}, "regex parse error: [a- ^ error: unclosed character class"),
        ({"guided_grammar": "start: foo"}, 'at 1(8): unknown name: "foo"'),
    ],
)
async def test_faults_do_not_show_what_was_made_of_the_request(fields: dict[str, Any], message: str) -> None:
    (where,) = fields
    answer = await ask(FakeEngine(), **fields)
    assert answer.json()["error"]["message"] == f"Invalid grammar in {where}: {message}"


async def test_unknown_kinds_of_form_are_typing_errors() -> None:
    error = (answer := await ask(FakeEngine(), structured_outputs={"reg": "a"})).json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, "structured_outputs.reg", "invalid_value")
    assert "must be one of json, json_object, regex, choice, grammar" in error["message"]


async def test_long_paths_are_shortened() -> None:
    schema: dict[str, Any] = {"type": "strin"}
    for _ in range(50):
        schema = {"properties": {"some_property": schema}}
    error = (await ask(FakeEngine(), response_format=named(schema))).json()["error"]
    assert len(error["param"]) < 310 and "..." in error["param"] and error["param"].endswith("some_property.type")
    assert error["param"] in error["message"] and len(error["message"]) < 600


async def test_deep_schemas_are_told_the_allowed_depth() -> None:
    def nested(num_levels: int) -> dict[str, Any]:
        schema: dict[str, Any] = {"type": "string"}
        for _ in range((num_levels - 1) // 2):
            schema = {"properties": {"a": schema}}
        return schema

    assert (await ask(FakeEngine(), response_format=named(nested(MAX_SCHEMA_DEPTH)))).status_code == 200
    error = (await ask(FakeEngine(), response_format=named(nested(MAX_SCHEMA_DEPTH + 2)))).json()["error"]
    assert (error["param"], f"{MAX_SCHEMA_DEPTH} levels" in error["message"]) == (
        "response_format.json_schema.schema",
        True,
    )


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": named({"$defs": {"a": {"title": "x" * MAX_GRAMMAR_CHARS}}})}, f"{RESPONSE}.schema"),
        ({"guided_regex": "a" * (MAX_GRAMMAR_CHARS + 1)}, "guided_regex"),
        ({"guided_grammar": "a" * (MAX_GRAMMAR_CHARS + 1)}, "guided_grammar"),
    ],
)
async def test_too_long_a_form_never_reaches_the_compiler(
    fields: dict[str, Any], param: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*args: Any) -> Any:
        raise AssertionError("asked")

    for name in ("shared_checker", "_find_fault"):
        monkeypatch.setattr(structured, name, unreachable)
    error = (answer := await ask(FakeEngine(), **fields)).json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert str(MAX_GRAMMAR_CHARS) in error["message"]


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"response_format": named({"allOf": PATTERNS})}, f"{RESPONSE}.schema", "invalid_grammar"),
        ({"guided_json": {"allOf": PATTERNS}}, "guided_json", "invalid_grammar"),
        (
            {"tools": [tool({"allOf": PATTERNS}, strict=True)], "tool_choice": "required"},
            "tools[0].function.parameters",
            "invalid_grammar",
        ),
    ],
)
async def test_forms_that_take_too_long_are_refused_by_name(
    fields: dict[str, Any], param: str, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(GrammarChecker(CheckLimits(seconds=0.2))) as checker:
        monkeypatch.setattr(structured, "shared_checker", lambda: checker)
        error = (answer := await ask(FakeEngine(), **fields)).json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, param, code)
    assert "takes too long to check" in error["message"]


@pytest.mark.parametrize("kind", ["structural_tag", "disable_any_whitespace", "whitespace_pattern"])
async def test_known_forms_that_are_not_built(kind: str) -> None:
    answer = await ask(FakeEngine(), structured_outputs={kind: {"a": 1}})
    assert (answer.status_code, answer.json()["error"]["param"]) == (501, f"structured_outputs.{kind}")
