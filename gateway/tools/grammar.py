"""Grammars of tool calls, and of answers that reason first, in llguidance's form."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.answers.reasoning import ReasoningFormat
from gateway.tools.base import Tool

MORE_CALLS = "{0,15}"  # beside the first: a small model may otherwise call until its tokens end
_OPEN = {
    "additionalProperties",
    "patternProperties",
    "unevaluatedProperties",
    "$ref",
    "allOf",
    "anyOf",
    "oneOf",
}
_NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}
_WHITESPACE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_TEXT = "/(?s:.*)/"


@dataclass(frozen=True, slots=True)
class Answer:
    """The shape of an answer with calls: `body` is the rule of all that follows the first begin marker."""

    body: str
    begin: str | None
    bare: str = ""  # the character that begins `body`, where it may stand without the marker


def schema_of(tool: Tool, *, strict_only: bool) -> dict[str, Any]:
    """What a call's arguments must be: always an object, of the named properties only where the schema names some and
    says nothing of others."""
    if strict_only and not tool.strict:
        return {"type": "object"}
    schema = {"type": "object", **(_NO_PARAMETERS if tool.parameters is None else tool.parameters)}
    closed = {} if "properties" not in schema or _OPEN & schema.keys() else {"additionalProperties": False}
    return {**schema, **closed}


def json_rule(schema: Mapping[str, Any], *, lenient: bool) -> str:
    """JSON on one line. lenient: what cannot be enforced is left to the model."""
    return "%json " + json.dumps({**schema, "x-guidance": {**_WHITESPACE, "lenient": lenient}})


def json_arguments(tool: Tool, *, strict_only: bool) -> str:
    return json_rule(schema_of(tool, strict_only=strict_only), lenient=not tool.strict)


def literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def marker(text: str, special: Mapping[str, int]) -> str:
    """A marker as the model writes it: its control token, or its characters."""
    return f"<[{special[text]}]>" if text in special else literal(text)


def lark(answer: Answer, rules: Sequence[str], *, required: bool, special: Mapping[str, int]) -> str:
    """An answer of calls alone (required), or free text in which calls may begin."""
    starts = [answer.body] if answer.bare else []
    if required:
        if answer.begin is not None:
            starts.append(f"{marker(answer.begin, special)} {answer.body}")
        return "\n".join(["%llguidance {}", f"start: {' | '.join(starts)}", *rules])
    text = _text_not_beginning(answer.bare) if answer.bare else _TEXT
    extra = [f"TEXT: {text}", "text: TEXT"]
    if answer.begin is not None:
        starts.append(f"opened {answer.body}")
        extra += _until("opened", answer.begin, special)
    return "\n".join(["%llguidance {}", f"start: {' | '.join(['text', *starts])}", *extra, *rules])


def wrap_after_reasoning(
    grammar: str, reasoning: ReasoningFormat, *, starts_inside: bool, special: Mapping[str, int]
) -> str:
    """The grammar, after reasoning that is free: all up to the end marker if the prompt has begun it, otherwise
    what may come between the two markers. `grammar` is Lark, or JSON with llguidance's list of grammars."""
    first, *others = _grammars(grammar)
    name = first.get("name") or f"answer_{len(others)}"
    begin = "" if starts_inside else f"{marker(reasoning.begin, special)} "
    block = f"{begin}reasoning NEWLINES?"
    rules = [
        "%llguidance {}",
        f"start: {block} @{name}" if starts_inside else f"start: ({block})? @{name}",
        f"TEXT: {_TEXT}",
        r"NEWLINES: /\n{1,2}/",
        *_until("reasoning", reasoning.end, special),
    ]
    wrapper = {"lark_grammar": "\n".join(rules)}
    return json.dumps({"grammars": [wrapper, {**first, "name": name}, *others]})


def _until(name: str, text: str, special: Mapping[str, int]) -> list[str]:
    """Rules for free text up to and with a marker. Spelled out, it counts also where it is a control token."""
    spelled = f"{name}_spelled[lazy]: TEXT {literal(text)}"
    if text not in special:
        return [f"{name}: {name}_spelled", spelled]
    return [f"{name}: {name}_spelled | TEXT {marker(text, special)}", spelled]


def _text_not_beginning(character: str) -> str:
    return rf"/[ \t\r\n]*([^\{character} \t\r\n](?s:.*))?/"


def _grammars(grammar: str) -> list[dict[str, Any]]:
    if not grammar.lstrip().startswith("{"):
        return [{"lark_grammar": grammar}]
    grammars: list[dict[str, Any]] = json.loads(grammar)["grammars"]
    return grammars
