"""Calls as JSON objects with a name and arguments: read as they come, arguments verbatim.

Brackets and strings are followed; what is between them is the model's business once the name is out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from gateway.tools.base import Call, Tool
from gateway.tools.cursor import Cursor, Emit, Malformed, Reading
from gateway.tools.grammar import json_arguments, literal
from gateway.tools.output import Draft, Output

ARGUMENT_KEYS = frozenset({"arguments", "parameters"})
_IN_STRING = re.compile(r'[^"\\]*')
_BETWEEN = re.compile(r"[-+.,:0-9A-Za-z \t\r\n]*")
_SCALAR = re.compile(r"[-+.0-9A-Za-z]*")
_HEX = frozenset("0123456789abcdefABCDEF")
_HIGH_SURROGATE = re.compile(r"\\u[dD][89abAB]..")
_CLOSERS = {"{": "}", "[": "]"}


def render_call(call: Call, key: str = "arguments") -> str:
    return f'{{"name": {json.dumps(call.name, ensure_ascii=False)}, "{key}": {call.arguments}}}'


def call_rules(tools: Sequence[Tool], key: str, *, strict_only: bool) -> list[str]:
    """The Lark rule `call`, of one object that is written as render_call writes it."""
    forms = []
    for tool in tools:
        beginning = f'{{"name": {json.dumps(tool.name, ensure_ascii=False)}, "{key}": '
        arguments = json_arguments(tool, strict_only=strict_only)
        forms.append(f"{literal(beginning)} ({arguments}) {literal('}')}")
    return [f"call: {' | '.join(forms)}"]


def read_call(cursor: Cursor, output: Output, *, certain: bool) -> Reading[None]:
    """One object. Raises Malformed where it is none, or turns out not to be a call."""
    draft = Draft(output, certain=certain)
    try:
        yield from cursor.expect("{")
        yield from cursor.skip_space()
        while (yield from cursor.peek()) != "}":
            yield from _member(cursor, draft)
        if not (draft.has_name and (certain or draft.has_arguments)):
            raise Malformed
        cursor.at += 1
    except Malformed:
        draft.end()
        raise
    draft.end()


def _member(cursor: Cursor, draft: Draft) -> Reading[None]:
    key = yield from _decoded_string(cursor)
    yield from cursor.skip_space()
    yield from cursor.expect(":")
    yield from cursor.skip_space()
    if key == "name" and not draft.has_name:
        name = yield from _decoded_string(cursor)
        if not name:
            raise Malformed
        draft.name(name)
    elif key in ARGUMENT_KEYS and not draft.has_arguments:
        draft.begin_arguments()
        yield from read_arguments(cursor, draft.arguments)
    else:
        yield from _value(cursor, _ignore)
    yield from cursor.skip_space()
    if (yield from cursor.peek()) == ",":
        cursor.at += 1
        yield from cursor.skip_space()
    elif (yield from cursor.peek()) != "}":
        raise Malformed


def read_arguments(cursor: Cursor, emit: Emit) -> Reading[None]:
    """A JSON value as it stands; but null is {}, and an object written as a string is that object."""
    first = yield from cursor.peek()
    if first == '"':
        yield from _unwrapped(cursor, emit)
    elif first in _CLOSERS:
        yield from _nested(cursor, emit)
    else:
        scalar = yield from _scalar(cursor)
        emit("{}" if scalar == "null" else scalar)


def decoded(raw: str) -> str:
    """The text that the inside of a JSON string stands for. Half a surrogate pair becomes U+FFFD."""
    if "\\" not in raw:
        return raw
    try:
        text: str = json.loads(f'"{raw}"', strict=False)
    except ValueError:
        return raw
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _value(cursor: Cursor, emit: Emit) -> Reading[None]:
    first = yield from cursor.peek()
    if first == '"':
        yield from _string(cursor, emit)
    elif first in _CLOSERS:
        yield from _nested(cursor, emit)
    else:
        emit((yield from _scalar(cursor)))


def _nested(cursor: Cursor, emit: Emit) -> Reading[None]:
    closers: list[str] = []
    while True:
        yield from cursor.run(_BETWEEN, emit)
        character = cursor.text[cursor.at]
        if character == '"':
            yield from _string(cursor, emit)
            continue
        if character in _CLOSERS:
            closers.append(_CLOSERS[character])
        elif character != closers.pop():
            raise Malformed
        emit(cursor.take(cursor.at + 1))
        if not closers:
            return


def _scalar(cursor: Cursor) -> Reading[str]:
    scalar = yield from cursor.collect(_SCALAR)
    try:
        json.loads(scalar, parse_constant=_refuse_constant)
    except ValueError as error:
        raise Malformed from error
    return scalar


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _string(cursor: Cursor, emit: Emit) -> Reading[None]:
    yield from cursor.expect('"')
    emit('"')
    yield from _string_rest(cursor, emit)
    emit('"')


def _decoded_string(cursor: Cursor) -> Reading[str]:
    yield from cursor.expect('"')
    raw: list[str] = []
    yield from _string_rest(cursor, raw.append)
    return decoded("".join(raw))


def _string_rest(cursor: Cursor, emit: Emit) -> Reading[None]:
    """From behind the opening quote to behind the closing one, which is not emitted. Escapes stay in one piece."""
    while True:
        yield from cursor.run(_IN_STRING, emit)
        if cursor.text[cursor.at] == '"':
            cursor.at += 1
            return
        cursor.at += 1
        emit("\\" + (yield from _escape(cursor)))


def _escape(cursor: Cursor) -> Reading[str]:
    escape = yield from cursor.peek()
    cursor.at += 1
    if escape == "u":
        while len(escape) < 5 and (yield from cursor.peek()) in _HEX:
            escape += cursor.take(cursor.at + 1)
    return escape


def _unwrapped(cursor: Cursor, emit: Emit) -> Reading[None]:
    yield from cursor.expect('"')
    unwrapper = _Unwrapper(emit)
    yield from _string_rest(cursor, unwrapper.push)
    unwrapper.end()


class _Unwrapper:
    """The inside of a string: what it stands for if that begins an object, or else the string."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._raw: list[str] | None = []  # until it is clear which; then None
        self._is_object = False
        self._high = ""  # half a surrogate pair

    def push(self, raw: str) -> None:
        if self._raw is None:
            self._pass(raw)
            return
        self._raw.append(raw)
        text = decoded(raw).lstrip()
        if text:
            self._is_object = text[0] == "{"
            self._begin(self._raw)

    def end(self) -> None:
        if self._raw is not None:
            self._emit("{}")
        elif not self._is_object:
            self._emit('"')
        elif self._high:
            self._emit(decoded(self._high))

    def _begin(self, held: list[str]) -> None:
        self._raw = None
        if not self._is_object:
            self._emit('"')
        for raw in held:
            self._pass(raw)

    def _pass(self, raw: str) -> None:
        if not self._is_object:
            self._emit(raw)
            return
        raw, self._high = self._high + raw, ""
        if _HIGH_SURROGATE.fullmatch(raw):
            self._high = raw
        else:
            self._emit(decoded(raw))


def _ignore(text: str) -> None:
    pass
