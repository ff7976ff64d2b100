"""The table of all fields.

A key is a field's name in every request, or `Type.field` for one type's own. What stands beside description, default
and examples narrows the type; with `anyOf`, `enum` or `$ref` it replaces the type.
"""

from __future__ import annotations

from gateway.openapi.fields.anthropic import ANTHROPIC
from gateway.openapi.fields.forms import Schema
from gateway.openapi.fields.of_server import of_roseinfer, of_server
from gateway.openapi.fields.openai import CHAT, COMPLETIONS, SAMPLING, SHAPES, TOKENS
from gateway.openapi.fields.responses import RESPONSES
from gateway.services import Services


def all_fields(services: Services) -> dict[str, Schema]:
    fixed = {**SAMPLING, **SHAPES, **CHAT, **COMPLETIONS, **TOKENS, **ANTHROPIC, **RESPONSES}
    return {**fixed, **of_server(services), **of_roseinfer(services)}
