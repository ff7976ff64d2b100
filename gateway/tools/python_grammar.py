"""The grammar of calls in Python: keywords in the order of the schema, values as JSON, which the reader takes too."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from gateway.tools.base import Tool
from gateway.tools.grammar import json_rule, literal, schema_of

_UNFIT = frozenset({"$ref", "anyOf", "oneOf", "allOf", "patternProperties", "if", "not", "dependentRequired"})
_DEFINITIONS = ("$defs", "definitions")
_PLAIN = frozenset({"type", "title", "description", "default"})
_CONSTANTS = {"boolean": '("True" | "False")', "null": '"None"'}
_NAME = re.compile(r"[A-Za-z_]\w*")


def keyword(key: str) -> str:
    """A key as it is written before "=": quoted where it is no name."""
    return key if _NAME.fullmatch(key) else literal(key)


def call_rules(tools: Sequence[Tool], *, strict_only: bool) -> list[str]:
    """The Lark rule `call`. Raises ValueError where the parameters are no plain list of properties."""
    names = [f"call_{number}" for number in range(len(tools))]
    rules = [f"call: {' | '.join(names)}"]
    for name, tool in zip(names, tools, strict=True):
        rules += _rules(name, tool, schema_of(tool, strict_only=strict_only))
    return rules


def _rules(name: str, tool: Tool, schema: Mapping[str, Any]) -> list[str]:
    unfit = sorted(_UNFIT & schema.keys())
    if unfit:
        raise ValueError(f"'{unfit[0]}' at the top of the parameters of {tool.name} cannot be enforced")
    properties = dict(schema.get("properties", {}))
    missing = [key for key in schema.get("required", ()) if key not in properties]
    properties |= {key: {} for key in missing}
    if not properties:
        return _open_rules(name, tool, schema.get("additionalProperties", True))
    required = [key in schema.get("required", ()) for key in properties]
    definitions = {key: schema[key] for key in _DEFINITIONS if key in schema}
    rules = [f"{name}: {literal(tool.name + '(')} {_any_beginning(name, required)} {literal(')')}"]
    for at, (key, value) in enumerate(properties.items()):
        rules.append(
            f"{name}_{at}: {literal(keyword(key) + '=')} {_value(value, definitions, lenient=not tool.strict)}"
        )
        tail = f"{name}_after_{at + 1}" if at + 1 < len(properties) else ""
        rules.append(f"{name}_after_{at}: ({literal(', ')} {name}_{at}){'' if required[at] else '?'} {tail}")
    return rules


def _any_beginning(name: str, required: Sequence[bool]) -> str:
    """The list of arguments, by the one that comes first: none of those before it may be required."""
    num_optional = len(list(takewhile(lambda is_required: not is_required, required)))
    firsts = range(min(num_optional + 1, len(required)))
    lists = [f"{name}_{at} {f'{name}_after_{at + 1}' if at + 1 < len(required) else ''}" for at in firsts]
    return f"({' | '.join(lists)}){'' if any(required) else '?'}"


def _open_rules(name: str, tool: Tool, additional: Any) -> list[str]:
    """Of a function without properties: no arguments, or any that there are values for."""
    if additional is False:
        return [f"{name}: {literal(tool.name + '()')}"]
    return [
        f"{name}: {literal(tool.name + '(')} ({name}_any ({literal(', ')} {name}_any)*)? {literal(')')}",
        f"{name}_any: /[A-Za-z_][A-Za-z0-9_]*=/ {_value(additional, {}, lenient=not tool.strict)}",
    ]


def _value(schema: Any, definitions: Mapping[str, Any], *, lenient: bool) -> str:
    if schema is False:
        raise ValueError("a property without any value cannot be enforced")
    if isinstance(schema, dict) and schema.keys() <= _PLAIN and schema.get("type") in _CONSTANTS:
        return _CONSTANTS[schema["type"]]
    return f"({json_rule({**({} if schema is True else schema), **definitions}, lenient=lenient)})"
