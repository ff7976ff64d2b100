"""The forms of which fields and types are made."""

from __future__ import annotations

from typing import Any

from gateway.requests import convert, structured

Schema = dict[str, Any]
NULL: Schema = {"type": "null"}
ANY_OBJECT: Schema = {"type": "object"}


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def either(*forms: Schema) -> Schema:
    return {"anyOf": list(forms)}


def array(items: Schema, **bounds: int) -> Schema:
    return {"type": "array", "items": items, **bounds}


def text(description: str, **rest: Any) -> Schema:
    return {"description": description, **rest}


def having(required: list[str], **fields: Schema) -> Schema:
    return {"properties": fields, "required": required}


def typed(kind: str, **fields: Schema) -> Schema:
    properties = {"type": {"const": kind}, **fields}
    return {"type": "object", "properties": properties, "required": list(properties)}


TEXT: Schema = {"type": "string"}
STOP: Schema = {"type": "string", "minLength": 1, "maxLength": convert.MAX_STOP_CHARS}
JSON_SCHEMA = either(ANY_OBJECT, {"const": True})
JSON_OR_TEXT = either(ANY_OBJECT, {"const": True}, TEXT)
CHOICES = array({"type": "string", "minLength": 1}, minItems=1, maxItems=structured.MAX_CHOICES)
PATTERN: Schema = {"type": "string", "minLength": 1}
FUNCTION_NAME: Schema = {"pattern": "^[A-Za-z0-9_.-]{1,64}$"}
PROMPT = either(
    TEXT, array(TEXT, minItems=1), array(ref("TokenId"), minItems=1), array(array(ref("TokenId")), minItems=1)
)


NAMED_FUNCTION = typed("function", function={"type": "object", "properties": {"name": TEXT}, "required": ["name"]})
ALLOWED_TOOLS = typed(
    "allowed_tools",
    allowed_tools={
        "type": "object",
        "properties": {"mode": {"enum": ["auto", "required"]}, "tools": array(NAMED_FUNCTION, minItems=1)},
        "required": ["mode", "tools"],
    },
)
MODES: Schema = {"enum": ["none", "auto", "required"]}
NAMED_SCHEMA: Schema = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1},
        "schema": JSON_SCHEMA,
        "strict": {"type": ["boolean", "null"]},
    },
    "required": ["name", "schema"],
}
