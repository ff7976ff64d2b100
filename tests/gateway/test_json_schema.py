"""What JSON schemas ask for is enforced or refused by name: random walks through grammars, and every keyword."""

import json
import random
import tracemalloc
from typing import Any

import jsonschema_rs
import pytest
from jsonschema import Draft202012Validator
from jsonschema_specifications import REGISTRY
from llguidance import LLMatcher, LLTokenizer

from gateway.errors import ApiError
from gateway.requests.json_schema import FORMATS, enforceable
from gateway.requests.structured import schema_grammar
from tests.fixtures.schemas import KINDS, Schema, closed, defined, ref

WHERE = "response_format.json_schema.schema"
NUM_WALKS = 5
LONG = 200  # bytes, after which a walk looks for its end
TOO_LONG = 4 * LONG

ALL = [(f"{kind}-{index}", schema) for kind, schemas in KINDS.items() for index, schema in enumerate(schemas)]


@pytest.fixture(scope="module")
def tokenizer() -> LLTokenizer:
    """A token is a byte."""
    return LLTokenizer("byte")


def walk(grammar: str, tokenizer: LLTokenizer, rng: random.Random) -> bytes | None:
    """A random answer that the grammar allows; None where it finds no end."""
    matcher, answer = LLMatcher(tokenizer, grammar), bytearray()
    eagerness = rng.choice([0.05, 0.3, 0.9])
    while not matcher.is_stopped() and len(answer) < TOO_LONG:
        late = len(answer) > LONG
        if matcher.is_accepting() and (late or rng.random() < 0.3):
            break
        mask = matcher.compute_bitmask()
        allowed = [byte for byte in range(256) if mask[byte >> 3] >> (byte & 7) & 1]
        if not allowed:
            break
        ends = [byte for byte in allowed if byte in b'"}]']
        byte = rng.choice(ends if ends and (late or rng.random() < eagerness) else allowed)
        assert matcher.consume_token(byte), matcher.get_error()
        answer.append(byte)
    return bytes(answer) if matcher.is_accepting() or matcher.is_stopped() else None


@pytest.mark.parametrize(("name", "schema"), ALL, ids=[name for name, _ in ALL])
def test_whatever_the_grammar_allows_is_valid(name: str, schema: Schema, tokenizer: LLTokenizer) -> None:
    Draft202012Validator.check_schema(schema)
    validators = (
        Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER),
        jsonschema_rs.Draft202012Validator(schema, validate_formats=True),  # knows more of the formats
    )
    grammar = schema_grammar(schema, WHERE)
    for seed in range(NUM_WALKS):
        answer = walk(grammar, tokenizer, random.Random(f"{name} {seed}"))
        if answer is None:
            continue
        for validator in validators:
            validator.validate(json.loads(answer))


def fault_of(schema: Any) -> ApiError:
    with pytest.raises(ApiError) as raised:
        schema_grammar(schema, WHERE)
    assert raised.value.status == 400 and raised.value.code == "invalid_json_schema"
    return raised.value


# All keywords of the drafts 4 to 2020-12 that constrain values and that no grammar is made of.
NOT_ENFORCED: dict[str, Any] = {
    "uniqueItems": True,
    "contains": {"type": "integer"},
    "minContains": 1,
    "maxContains": 3,
    "unevaluatedItems": False,
    "unevaluatedProperties": False,
    "propertyNames": {"pattern": "a"},
    "dependencies": {"a": ["b"]},
    "dependentRequired": {"a": ["b"]},
    "dependentSchemas": {"a": {}},
    "not": {"type": "string"},
    "if": {"type": "string"},
    "then": {"minLength": 3},
    "else": {"type": "integer"},
    "contentEncoding": "base64",
    "contentMediaType": "application/json",
    "contentSchema": {"type": "object"},
    "$dynamicRef": "#a",
    "$dynamicAnchor": "a",
    "$recursiveRef": "#",
    "$recursiveAnchor": True,
    "$vocabulary": {"https://json-schema.org/draft/2020-12/vocab/core": True},
    "x-guidance": {"lenient": True},
}
ENFORCED = {
    *("type", "enum", "const", "minLength", "maxLength", "pattern", "format", "minimum", "maximum", "multipleOf"),
    *("exclusiveMinimum", "exclusiveMaximum", "items", "prefixItems", "additionalItems", "minItems", "maxItems"),
    *("properties", "patternProperties", "additionalProperties", "required", "minProperties", "maxProperties"),
    *("anyOf", "oneOf", "allOf", "$ref", "$defs", "definitions", "$id", "$anchor", "$schema"),
}
ANNOTATIONS = {
    *("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment"),
}
PLACES = [
    ("", lambda schema: schema),
    (".properties.a", lambda schema: {"properties": {"a": schema}}),
    (".patternProperties.^a", lambda schema: {"patternProperties": {"^a": schema}}),
    (".additionalProperties", lambda schema: {"additionalProperties": schema}),
    (".items", lambda schema: {"items": schema}),
    (".prefixItems[1]", lambda schema: {"prefixItems": [True, schema]}),
    (".items[0]", lambda schema: {"items": [schema], "additionalItems": False}),
    (".additionalItems", lambda schema: {"items": [{}], "additionalItems": schema}),
    (".anyOf[1]", lambda schema: {"anyOf": [{}, schema]}),
    (".oneOf[0]", lambda schema: {"oneOf": [schema, {"type": "null"}]}),
    (".allOf[0]", lambda schema: {"allOf": [schema]}),
    (".$defs.unused", lambda schema: {"$defs": {"unused": schema}}),
    (".definitions.unused", lambda schema: {"definitions": {"unused": schema}}),
    (".properties.a.items.anyOf[0]", lambda schema: {"properties": {"a": {"items": {"anyOf": [schema]}}}}),
]


METASCHEMAS = [uri for uri in REGISTRY if not uri.endswith(("draft-03/schema", "draft-04/schema"))]


def test_every_keyword_is_known() -> None:
    """The vocabularies of drafts 6 to 2020-12, as their meta-schemas list them."""
    keywords = {name for uri in METASCHEMAS for name in REGISTRY.contents(uri).get("properties", {})}
    assert keywords == (ENFORCED | ANNOTATIONS | NOT_ENFORCED.keys()) - {"x-guidance"}


@pytest.mark.parametrize("keyword", NOT_ENFORCED)
def test_what_is_not_enforced_is_refused_wherever_it_stands(keyword: str) -> None:
    for path, place in PLACES:
        fault = fault_of(place({keyword: NOT_ENFORCED[keyword]}))
        assert fault.param == f"{WHERE}{path}.{keyword}"
        assert f"'{keyword}' cannot be enforced" in fault.message


@pytest.mark.parametrize("keyword", sorted(ANNOTATIONS | {"x-foo", "nullable", "example", "units"}))
def test_annotations_pass(keyword: str, tokenizer: LLTokenizer) -> None:
    """Also such as look like schemas."""
    annotated = {"type": "null", keyword: {"not": {}, "type": "no type"}}
    assert walk(schema_grammar(annotated, WHERE), tokenizer, random.Random(0)) == b"null"


def test_names_of_properties_and_constants_are_no_keywords() -> None:
    names = dict.fromkeys(NOT_ENFORCED, True)
    schema_grammar({"properties": names, "$defs": names, "required": list(names)}, WHERE)
    schema_grammar({"enum": [NOT_ENFORCED], "default": NOT_ENFORCED}, WHERE)
    schema_grammar({"const": NOT_ENFORCED}, WHERE)


OF_OTHER_TYPES: list[Schema] = [
    {"type": "string", "maximum": 3},
    {"type": "string", "items": {}},
    {"type": "integer", "maxLength": 3},
    {"type": "integer", "format": "date"},
    {"type": "boolean", "multipleOf": 2},
    {"type": ["string", "null"], "minimum": 1},
    {"type": "object", "minItems": 1},
    {"type": "array", "required": ["a"]},
    {"type": "array", "additionalProperties": False},
    {"type": "null", "properties": {}},
]


@pytest.mark.parametrize("schema", OF_OTHER_TYPES)
def test_what_says_nothing_of_the_type_is_refused(schema: Schema) -> None:
    keyword = list(schema)[1]
    fault = fault_of(closed(a=schema))
    assert fault.param == f"{WHERE}.properties.a.{keyword}"
    assert f"'{keyword}' says nothing" in fault.message


UNKNOWN_FORMATS = (
    *("unknown", "idn-email", "idn-hostname", "iri", "iri-reference", "uri-reference", "uri-template", "regex"),
    *("json-pointer", "relative-json-pointer", "int32", "double", "password", "binary", "byte", "path", "Date", ""),
)


@pytest.mark.parametrize("name", UNKNOWN_FORMATS)
def test_unknown_formats(name: str) -> None:
    fault = fault_of({"anyOf": [{"type": "string", "format": name}]})
    assert fault.param == f"{WHERE}.anyOf[0].format"
    assert all(known in fault.message for known in FORMATS)


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ({"$ref": "https://example.com/schema"}, ".$ref"),
        ({"$ref": "other.json#/a"}, ".$ref"),
        ({"$ref": "#/$defs/missing"}, ".$ref"),
        ({"$ref": "#missing"}, ".$ref"),
        ({"$ref": 3}, ".$ref"),
        ({"$ref": "#/x-foo", "x-foo": {"not": {}}}, ".$ref"),
        ({"$ref": "#"}, ".$ref"),
        (defined(ref("a"), a=ref("b"), b=ref("a")), ".$ref"),
        ({"properties": {"a": {"$id": "https://example.com/a"}}}, ".properties.a.$id"),
        ({"$ref": "#/$defs/a", "uniqueItems": True, "$defs": {"a": {}}}, ".uniqueItems"),
        ({"type": "any"}, ".type"),
        ({"type": ["string", 3]}, ".type"),
        ({"$defs": 3}, ".$defs"),
        ({"$defs": {"a": 3}}, ".$defs.a"),
        ({"$defs": {"a": {"type": "nope"}}}, ".$defs.a.type"),
        ({"properties": []}, ".properties"),
        ({"anyOf": {}}, ".anyOf"),
        ({"allOf": 3}, ".allOf"),
        ({"items": 3}, ".items"),
        ({"items": [3]}, ".items[0]"),
        ({"additionalItems": False}, ".additionalItems"),
        ({"prefixItems": [{}], "items": [{}]}, ".items"),
        ({"multipleOf": 0}, ".multipleOf"),
        ({"multipleOf": -1}, ".multipleOf"),
        ({"exclusiveMinimum": True}, ".exclusiveMinimum"),
        ({"additionalProperties": {}, "minProperties": 2}, ".minProperties"),
        ({"minLength": -1}, ""),
        ({"type": "string", "minLength": 3, "maxLength": 2}, ""),
        ({"pattern": "("}, ""),
        ({"pattern": "a(?=b)"}, ""),
        ({"required": "a"}, ""),
        ({"required": [1]}, ""),
        ({"enum": []}, ""),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, ""),
        (defined({"oneOf": [ref("a"), {"type": "object"}]}, a=closed(a=True)), ""),
        ({"patternProperties": {"^a": {"type": "null"}, "b$": {"type": "string"}}}, ""),
        ({"properties": {"a": {"type": "integer", "minimum": "x"}}}, ".properties.a"),
        ({"type": "object", "required": ["a"], "additionalProperties": False}, ""),
    ],
)
def test_faults_are_told_by_their_path(schema: Schema, path: str) -> None:
    fault = fault_of(schema)
    assert fault.param == WHERE + path
    assert fault.param in fault.message


def test_what_asks_for_nothing_passes() -> None:
    schema_grammar({"type": "array", "uniqueItems": False}, WHERE)
    schema_grammar({"type": "object", "additionalProperties": True, "minProperties": 1}, WHERE)


def test_a_long_name_is_not_copied_for_each_schema_below_it() -> None:
    below = {f"a{index}": {} for index in range(2000)}
    schema = {"properties": {"k" * 100_000: {"properties": below}}}
    tracemalloc.start()
    try:
        enforceable(schema, "response_format")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20 << 20  # the paths of all would have 200 MB


def test_a_long_chain_of_references() -> None:
    chain = {f"a{at}": ref(f"a{at + 1}") for at in range(1000)}
    schema_grammar(defined(ref("a0"), **chain, a1000={"type": "null"}), WHERE)


def test_a_deep_schema_is_refused() -> None:
    schema: Any = {}
    for _ in range(5000):
        schema = {"items": schema}
    assert "deep" in fault_of(schema).message


def accepts(schema: Schema, text: str, tokenizer: LLTokenizer) -> bool:
    matcher = LLMatcher(tokenizer, schema_grammar(schema, WHERE))
    return matcher.consume_tokens(list(text.encode())) and matcher.is_accepting()


ZOD_EMAIL = r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$"


@pytest.mark.parametrize(
    ("schema", "text", "expected"),
    [
        ({"type": "string", "format": "time"}, '"23:59:59Z"', True),
        ({"type": "string", "format": "time"}, '"10:20:60Z"', False),
        ({"type": "string", "format": "date-time"}, '"2024-01-31T10:20:60Z"', False),
        ({"type": "string", "format": "date"}, '"2024-02-29"', True),
        ({"type": "string", "format": "date"}, '"2000-02-29"', True),
        ({"type": "string", "format": "date"}, '"2023-02-29"', False),
        ({"type": "string", "format": "date"}, '"1900-02-29"', False),
        ({"type": "string", "format": "date"}, '"2023-12-31"', True),
        ({"type": "string", "format": "date"}, '"0000-01-01"', False),
        ({"type": "string", "format": "date-time"}, '"2024-02-29T10:20:30.5+01:00"', True),
        ({"type": "string", "format": "email", "pattern": ZOD_EMAIL}, '"a.b@example.com"', True),
        ({"type": "string", "format": "email", "pattern": ZOD_EMAIL}, '".a@example.com"', False),
        ({"type": "string", "format": "email", "pattern": ZOD_EMAIL}, '"a..b@example.com"', False),
        ({"type": "integer", "minimum": 3, "exclusiveMinimum": True}, "3", False),
        ({"items": [{"type": "null"}], "additionalItems": False, "type": "array"}, "[null, null]", False),
        (defined({"oneOf": [ref("a"), {"type": "null"}]}, a=closed(a=True)), "null", True),
        (defined({"oneOf": [ref("a"), {"type": "null"}]}, a=closed(a=True)), '{"a": 1}', True),
    ],
)
def test_answers(schema: Schema, text: str, expected: bool, tokenizer: LLTokenizer) -> None:
    assert accepts(schema, text, tokenizer) == expected
