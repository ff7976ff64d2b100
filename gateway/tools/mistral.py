"""[TOOL_CALLS] with a list of {"name": ..., "arguments": ...}, or with name[ARGS]{...} for each call: Mistral."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from gateway.answers.parts import Reader
from gateway.tools.base import Call, Tool
from gateway.tools.cursor import Cursor, Malformed, Reading
from gateway.tools.grammar import MORE_CALLS, Answer, json_arguments, lark, literal, marker
from gateway.tools.json_call import call_rules, read_arguments, read_call, render_call
from gateway.tools.output import Draft, Output
from gateway.tools.reader import CallReader, Syntax

_BEGIN, _ID, _ARGUMENTS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
_NAME = re.compile(r"[\w.:/-]*")
_ANY_ID = re.compile(r"[^\[]*")


class MistralFormat:
    """by_name: name[ARGS]{...} is what the model was trained to write. Both forms are read."""

    name = "mistral"
    markers = (_BEGIN, _ID, _ARGUMENTS)

    def __init__(self, *, by_name: bool) -> None:
        self._by_name = by_name

    def reader(self, new_id: Callable[[], str]) -> Reader:
        return CallReader(Syntax(_body, begins=(_BEGIN,)), new_id)

    def render(self, calls: Sequence[Call]) -> str:
        if self._by_name:
            return "".join(f"{_BEGIN}{call.name}{_ARGUMENTS}{call.arguments}" for call in calls)
        return f"{_BEGIN}[{', '.join(map(render_call, calls))}]"

    def grammar(
        self, tools: Sequence[Tool], *, required: bool, parallel: bool, strict_only: bool, special: Mapping[str, int]
    ) -> str:
        if self._by_name:
            more = f"({marker(_BEGIN, special)} call){MORE_CALLS}" if parallel else ""
            rules = [f"calls: call {more}", *_named_rules(tools, special, strict_only=strict_only)]
        else:
            more = f"({literal(', ')} call){MORE_CALLS}" if parallel else ""
            rules = [
                f"calls: {literal('[')} call {more} {literal(']')}",
                *call_rules(tools, "arguments", strict_only=strict_only),
            ]
        return lark(Answer("calls", begin=_BEGIN), rules, required=required, special=special)


def _named_rules(tools: Sequence[Tool], special: Mapping[str, int], *, strict_only: bool) -> list[str]:
    forms = [
        f"{literal(tool.name)} {marker(_ARGUMENTS, special)} ({json_arguments(tool, strict_only=strict_only)})"
        for tool in tools
    ]
    return [f"call: {' | '.join(forms)}"]


def _body(cursor: Cursor, output: Output, marker: str) -> Reading[None]:
    yield from cursor.skip_space()
    first = yield from cursor.peek()
    if first == "{":
        yield from read_call(cursor, output, certain=True)
    elif first == "[":
        yield from _list(cursor, output)
    else:
        yield from _named(cursor, output)


def _list(cursor: Cursor, output: Output) -> Reading[None]:
    separator = ","
    cursor.at += 1
    yield from cursor.skip_space()
    while separator == "," and (yield from cursor.peek()) != "]":
        yield from read_call(cursor, output, certain=True)
        yield from cursor.skip_space()
        separator = yield from cursor.peek()
        if separator == ",":
            cursor.at += 1
            yield from cursor.skip_space()
    yield from cursor.expect("]")


def _named(cursor: Cursor, output: Output) -> Reading[None]:
    name = yield from cursor.collect(_NAME)
    if not name:
        raise Malformed
    yield from cursor.skip_space()
    if (yield from cursor.peek()) == "[":
        yield from _up_to_arguments(cursor)
    yield from cursor.skip_space()
    if (yield from cursor.peek()) not in '{"n':
        raise Malformed
    draft = Draft(output, certain=True)
    draft.name(name)
    yield from read_arguments(cursor, draft.arguments)


def _up_to_arguments(cursor: Cursor) -> Reading[None]:
    """From "[" behind [ARGS], over an id where there is one."""
    cursor.at += 1
    if (yield from cursor.peek()) == _ID[1]:
        yield from _spelled(cursor, _ID[1:])
        yield from cursor.collect(_ANY_ID)
        yield from cursor.expect("[")
    yield from _spelled(cursor, _ARGUMENTS[1:])


def _spelled(cursor: Cursor, text: str) -> Reading[None]:
    for character in text:
        yield from cursor.expect(character)
