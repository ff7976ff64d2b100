"""What an answer must look like: response_format and the guided fields, as one grammar in llguidance's form.

Checked here, so that a fault is a 400 with the compiler's words; compiled for the vocabulary by the engine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from time import monotonic
from typing import Any

from llguidance import LLMatcher

from gateway.errors import ApiError
from gateway.openai import GenerateRequest
from gateway.requests.grammar_check import TooCostly, shared_checker
from gateway.requests.json_schema import enforceable
from gateway.requests.parse import invalid, unbuilt
from gateway.timeline.laps import lap

MAX_GRAMMAR_CHARS = 1 << 18
MAX_CHOICES = 1024
MAX_SCHEMA_DEPTH = 120  # levels of objects and arrays; the compiler reads a few more
_MAX_LOOKED_AT = 256  # parts of a schema that are tried by themselves to find the one at fault
_FAULT_S = 2.0  # in which it is looked for
# One way to write each value: a model that may pad with white space can pad for ever.
_JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_ANY_OBJECT: dict[str, Any] = {"type": "object"}
_GUIDED = {"guided_json": "json", "guided_regex": "regex", "guided_choice": "choice", "guided_grammar": "grammar"}
_KINDS = ("json", "json_object", "regex", "choice", "grammar")
_KINDS_NOT_BUILT = (
    *("structural_tag", "whitespace_pattern", "disable_any_whitespace", "disable_fallback"),
    "disable_additional_properties",
)
_QUOTED_GRAMMAR = re.compile(r"\n *\d+ \| ")
_AROUND_REGEX = re.compile(r"^at 1\(8\): invalid regex \".*\" \(in regex\): ", re.DOTALL)
_NESTING = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE = ("items", "additionalProperties")


def grammar_of(request: GenerateRequest) -> str | None:
    """None: any text will do. Raises ApiError (400, or 501 for what is known and not built)."""
    found = [*_of_response_format(request.response_format), *_of_structured(request), *_of_guided(request)]
    if len(found) > 1:
        names = ", ".join(name for name, _ in found)
        raise invalid(found[1][0], f"Only one of these can shape an answer: {names}.", "conflicting_parameters")
    return found[0][1] if found else None


def _of_response_format(value: Any) -> Iterator[tuple[str, str]]:
    if value is None:
        return
    where = "response_format"
    if not isinstance(value, dict):
        raise invalid(where, f"Invalid value for {where}: expected an object.", "invalid_type")
    kind = value.get("type")
    if kind == "text":
        return
    if kind == "json_object":
        schema = value.get("schema")  # as llama.cpp's server has it
        yield where, schema_grammar(_ANY_OBJECT, where) if schema is None else schema_grammar(schema, f"{where}.schema")
    elif kind == "json_schema":
        yield where, _of_named_schema(value.get("json_schema"), f"{where}.json_schema")
    elif kind in ("structural_tag", "grammar", "python"):
        raise unbuilt(f"{where}.type", f"{where} of type '{kind}' is not built; use structured_outputs.grammar.")
    else:
        raise invalid(f"{where}.type", f"{where}.type must be one of text, json_object, json_schema.", "invalid_value")


def _of_named_schema(value: Any, where: str) -> str:
    if not isinstance(value, dict):
        raise invalid(where, f"Missing required field: {where}, an object.", "missing_required_parameter")
    name = value.get("name")
    if not isinstance(name, str) or not name:
        raise invalid(f"{where}.name", f"Missing required field: {where}.name.", "missing_required_parameter")
    if not isinstance(value.get("strict"), bool | None):
        raise invalid(f"{where}.strict", f"Invalid value for {where}.strict: expected a boolean.", "invalid_type")
    if value.get("schema") is None:
        raise invalid(f"{where}.schema", f"Missing required field: {where}.schema.", "missing_required_parameter")
    return schema_grammar(value["schema"], f"{where}.schema")


def _of_structured(request: GenerateRequest) -> Iterator[tuple[str, str]]:
    given = request.structured_outputs or {}
    for name, value in given.items():
        where = f"structured_outputs.{name}"
        if name not in (*_KINDS, *_KINDS_NOT_BUILT):
            raise invalid(where, f"A name in structured_outputs must be one of {', '.join(_KINDS)}.", "invalid_value")
        if value is None or (value is False and name not in _GUIDED.values()):
            continue
        if name not in _KINDS:
            raise unbuilt(where, f"{where} is not built; there are {', '.join(_KINDS)}.")
        yield where, _of_kind(name, value, where)


def _of_guided(request: GenerateRequest) -> Iterator[tuple[str, str]]:
    for name, kind in _GUIDED.items():
        value = getattr(request, name)
        if value is not None:
            yield name, _of_kind(kind, value, name)


def _of_kind(kind: str, value: Any, where: str) -> str:
    if kind == "json_object":
        if value is not True:
            raise invalid(where, f"Invalid value for {where}: expected a boolean.", "invalid_type")
        return schema_grammar(_ANY_OBJECT, where)
    if kind == "json":
        return schema_grammar(_schema_value(value, where), where)
    if kind == "choice":
        return _choice_grammar(value, where)
    if not isinstance(value, str) or not value:
        raise invalid(where, f"Invalid value for {where}: expected a non-empty string.", "invalid_type")
    _check_length(value, where)
    if kind == "regex":
        return checked(LLMatcher.grammar_from_regex(value), where)
    return _lark_grammar(value, where)


def _schema_value(value: Any, where: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise invalid(where, f"{where} is not valid JSON: {error}", "invalid_json_schema") from None


def _choice_grammar(value: Any, where: str) -> str:
    if not isinstance(value, list) or not value or not all(isinstance(item, str) and item for item in value):
        raise invalid(where, f"Invalid value for {where}: expected an array of non-empty strings.", "invalid_type")
    if len(value) > MAX_CHOICES:
        raise invalid(
            where, f"{where} holds at most {MAX_CHOICES} strings, but got {len(value)}.", "value_out_of_range"
        )
    return checked("start: " + " | ".join(map(_lark_string, value)), where)


def _lark_string(text: str) -> str:
    """As JSON, but for the delete character, which Lark's strings do not hold."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _lark_grammar(value: str, where: str) -> str:
    """Lark as llguidance has it, or the GBNF of llama.cpp and xgrammar."""
    try:
        with lap("grammar"):
            lark = shared_checker().lark(value)
    except TooCostly as error:
        raise _too_costly(where, error) from None
    except ValueError as error:
        raise invalid(where, f"{where} cannot be read: {_one_line(error)}", "invalid_grammar") from None
    return checked(LLMatcher.grammar_from_lark(lark), where)


# schemas


def schema_grammar(schema: Any, where: str) -> str:
    """Raises ApiError (400) with the compiler's words and the path of the smallest part that is at fault."""
    schema = enforced_schema(schema, where)
    text = json.dumps(schema)
    if len(text) > MAX_GRAMMAR_CHARS:
        problem = f"it has {len(text)} characters, more than {MAX_GRAMMAR_CHARS}."
        raise invalid(where, f"Invalid schema at {where}: {problem}", "invalid_json_schema")
    try:
        grammar, problem = _try_schema(text)
        if grammar is not None:
            return grammar
    except TooCostly as error:
        raise _too_costly(where, error) from None
    path = _find_fault(schema, where)
    raise invalid(path, f"Invalid schema at {path}: {problem}", "invalid_json_schema")


def check_leniently(schema: dict[str, Any], where: str) -> None:
    """Raises ApiError (400) where it is no schema at all."""
    overrides: Any = {"lenient": True}
    text = json.dumps(_object(schema, where))
    _check_length(text, where)
    try:
        grammar = LLMatcher.grammar_from_json_schema(text, overrides=overrides)
    except ValueError as error:  # what is no JSON to its reader, such as a number of 400 digits
        raise invalid(where, f"Invalid schema at {where}: {_one_line(error)}", "invalid_json_schema") from None
    checked(grammar, where)


def enforced_schema(schema: Any, where: str) -> dict[str, Any]:
    """In the compiler's terms. Raises ApiError (400) where it asks for what cannot be enforced."""
    document = _object(schema, where)
    return enforceable(document, where) if len(json.dumps(document)) <= MAX_GRAMMAR_CHARS else document


def _object(schema: Any, where: str) -> dict[str, Any]:
    if schema is False:
        raise invalid(where, f"{where}: false allows no value at all.", "invalid_json_schema")
    if schema is not True and not isinstance(schema, dict):
        raise invalid(where, f"Invalid value for {where}: expected a JSON schema, an object.", "invalid_type")
    document: dict[str, Any] = {} if schema is True else schema
    if _is_deep(document):
        message = f"{where} is nested too deeply: there may be {MAX_SCHEMA_DEPTH} levels."
        raise invalid(where, message, "invalid_json_schema")
    return document


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_SCHEMA_DEPTH + 1):
        level = [each for each in level if isinstance(each, dict | list)]
        level = [part for each in level for part in (each.values() if isinstance(each, dict) else each)]
    return bool(level)


def _try_schema(text: str) -> tuple[str | None, str]:
    """The grammar, or None and what is wrong. Raises TooCostly."""
    try:
        grammar = LLMatcher.grammar_from_json_schema(text, overrides=_JSON_STYLE)  # type: ignore[arg-type]
    except ValueError as error:
        return None, _one_line(error)
    problem = _problem(grammar)
    return (None, problem) if problem else (grammar, "")


def _find_fault(schema: Mapping[str, Any], where: str) -> str:
    """The path of the deepest part that fails by itself; through references too."""
    shared = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
    looked_at, until = 0, monotonic() + _FAULT_S
    path, current = where, schema
    if shared and _fails({"type": "null", **shared}):
        return path
    while True:
        for name, part in _parts(current):
            looked_at += 1
            if looked_at > _MAX_LOOKED_AT or monotonic() > until:
                return path
            if _fails({**shared, **part}):
                path, current = f"{path}.{name}", part
                break
        else:
            return path
        pointer, target = _referred(current, schema)
        if target is not None:
            path, current = f"{where}.{pointer}", target


def _referred(part: Mapping[str, Any], schema: Mapping[str, Any]) -> tuple[str, Mapping[str, Any] | None]:
    """What a part refers to within the schema, by name and as it is."""
    reference = part.get("$ref")
    if not isinstance(reference, str) or not reference.startswith("#/"):
        return "", None
    names = reference[2:].split("/")
    target: Any = schema
    for name in names:
        target = target.get(name) if isinstance(target, dict) else None
    return ".".join(names), target if isinstance(target, dict) else None


def _fails(schema: Mapping[str, Any]) -> bool:
    """What takes too long is not what was found to be wrong."""
    try:
        return _try_schema(json.dumps(schema))[0] is None
    except TooCostly:
        return False


def _parts(schema: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name in _NESTING:
        nested = schema.get(name)
        if isinstance(nested, dict):
            yield from ((f"{name}.{key}", part) for key, part in nested.items() if isinstance(part, dict))
    for name in _LISTS:
        nested = schema.get(name)
        if isinstance(nested, list):
            yield from ((f"{name}[{index}]", part) for index, part in enumerate(nested) if isinstance(part, dict))
    for name in _SINGLE:
        if isinstance(schema.get(name), dict):
            yield name, schema[name]


# checks


def checked(grammar: str, where: str) -> str:
    """As it is. Raises ApiError (400) where it cannot be compiled."""
    _check_length(grammar, where)
    try:
        problem = _problem(grammar)
    except TooCostly as error:
        raise _too_costly(where, error) from None
    if problem:
        raise invalid(where, f"Invalid grammar in {where}: {problem}", "invalid_grammar")
    return grammar


def _check_length(grammar: str, where: str) -> None:
    if len(grammar) > MAX_GRAMMAR_CHARS:
        message = f"{where} makes a grammar of {len(grammar)} characters; at most {MAX_GRAMMAR_CHARS} are allowed."
        raise invalid(where, message, "invalid_grammar")


def _too_costly(where: str, error: TooCostly) -> ApiError:
    return invalid(where, f"Invalid grammar in {where}: it {error}.", "invalid_grammar")


def _problem(grammar: str) -> str:
    """Empty: none. Raises TooCostly."""
    with lap("grammar"):
        problem = shared_checker().problem(grammar)
    if problem.startswith("oneOf constraints"):
        return "oneOf can be enforced only where no value can be two of its schemas, as their types or constants show."
    return _one_line(_AROUND_REGEX.sub("", _QUOTED_GRAMMAR.split(problem)[0]))


def either(first: str, second: str) -> str:
    """The grammar of answers that keep to one of two."""
    rules = [{"name": "main", "lark_grammar": "start: @first | @second"}]
    return json.dumps({"grammars": [*rules, _named("first", first), _named("second", second)]})


def _named(name: str, grammar: str) -> dict[str, Any]:
    """A grammar with one rule set, under a name of its own."""
    if not grammar.lstrip().startswith("{"):
        return {"name": name, "lark_grammar": grammar}
    (only,) = json.loads(grammar)["grammars"]
    return {**only, "name": name}


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:1000]
