"""Calls as a list of Python calls with keyword arguments, [f(a=1), g()]: turned into JSON as they come."""

from __future__ import annotations

import json
import re

from gateway.tools.cursor import Cursor, Emit, Malformed, Reading
from gateway.tools.output import Draft, Output

_MAX_DEPTH = 64
_NAME = re.compile(r"[\w.-]*")
_WORD = re.compile(r"[\w.+-]*")
_JSON_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_IN_STRING = {"'": re.compile(r"[^'\\]*"), '"': re.compile(r'[^"\\]*')}
_CLOSERS = {"[": "]", "(": ")", "{": "}"}
_CONSTANTS = {"True": "true", "False": "false", "None": "null", "true": "true", "false": "false", "null": "null"}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v", "0": "\0", "\n": ""}
_CODE_LENGTHS = {"x": 2, "u": 4, "U": 8}
_HEX = frozenset("0123456789abcdefABCDEF")


def read_calls(cursor: Cursor, output: Output) -> Reading[None]:
    """The whole list. Raises Malformed where it is none, or holds something else."""
    yield from cursor.expect("[")
    yield from cursor.skip_space()
    while (yield from cursor.peek()) != "]":
        yield from _call(cursor, output)
        yield from _comma(cursor, "]")
    cursor.at += 1


def _comma(cursor: Cursor, closer: str) -> Reading[bool]:
    """Takes the comma before the next item, if there is one. The last item may have one too."""
    yield from cursor.skip_space()
    separator = yield from cursor.peek()
    if separator == ",":
        cursor.at += 1
        yield from cursor.skip_space()
    elif separator != closer:
        raise Malformed
    return (yield from cursor.peek()) != closer


def _call(cursor: Cursor, output: Output) -> Reading[None]:
    name = yield from cursor.collect(_NAME)
    if not name:
        raise Malformed
    yield from cursor.skip_space()
    yield from cursor.expect("(")
    yield from cursor.skip_space()
    key = "" if (yield from cursor.peek()) == ")" else (yield from _keyword(cursor))
    draft = Draft(output, certain=True)
    draft.name(name)
    if key:
        draft.arguments("{")
        while key:
            draft.arguments(f"{key}: ")
            yield from _value(cursor, draft.arguments, _MAX_DEPTH)
            key = (yield from _keyword(cursor)) if (yield from _comma(cursor, ")")) else ""
            draft.arguments(", " if key else "}")
    cursor.at += 1
    draft.end()


def _keyword(cursor: Cursor) -> Reading[str]:
    """A name or a string with "=" behind it, as JSON."""
    if (yield from cursor.peek()) in _IN_STRING:
        quoted: list[str] = []
        yield from _string(cursor, quoted.append)
        key = "".join(quoted)
    else:
        name = yield from cursor.collect(_NAME)
        if not name:
            raise Malformed
        key = json.dumps(name, ensure_ascii=False)
    yield from cursor.skip_space()
    yield from cursor.expect("=")
    yield from cursor.skip_space()
    return key


def _value(cursor: Cursor, emit: Emit, depth: int) -> Reading[None]:
    if not depth:
        raise Malformed
    first = yield from cursor.peek()
    if first in _IN_STRING:
        yield from _string(cursor, emit)
    elif first == "{":
        yield from _items(cursor, emit, "{}", depth)
    elif first in _CLOSERS:
        yield from _items(cursor, emit, "[]", depth)
    else:
        emit((yield from _scalar(cursor)))


def _items(cursor: Cursor, emit: Emit, brackets: str, depth: int) -> Reading[None]:
    """A list or a tuple, or a dictionary."""
    closer = _CLOSERS[cursor.take(cursor.at + 1)]
    emit(brackets[0])
    yield from cursor.skip_space()
    more = (yield from cursor.peek()) != closer
    while more:
        if brackets == "{}":
            yield from _key(cursor, emit)
        yield from _value(cursor, emit, depth - 1)
        more = yield from _comma(cursor, closer)
        if more:
            emit(", ")
    cursor.at += 1
    emit(brackets[1])


def _key(cursor: Cursor, emit: Emit) -> Reading[None]:
    if (yield from cursor.peek()) in _IN_STRING:
        yield from _string(cursor, emit)
    else:
        emit(json.dumps((yield from _scalar(cursor))))
    yield from cursor.skip_space()
    yield from cursor.expect(":")
    yield from cursor.skip_space()
    emit(": ")


def _scalar(cursor: Cursor) -> Reading[str]:
    word = yield from cursor.collect(_WORD)
    if word in _CONSTANTS:
        return _CONSTANTS[word]
    if _JSON_NUMBER.fullmatch(word):
        return word
    try:
        return json.dumps(_number(word), allow_nan=False)
    except ValueError as error:
        raise Malformed from error


def _number(word: str) -> int | float:
    try:
        return int(word, 0)
    except ValueError:
        return float(word)


def _string(cursor: Cursor, emit: Emit) -> Reading[None]:
    quote = yield from cursor.peek()
    cursor.at += 1
    num_quotes = 1
    while num_quotes < 3 and (yield from cursor.peek()) == quote:
        cursor.at += 1
        num_quotes += 1
    emit('"')
    if num_quotes != 2:
        yield from _string_rest(cursor, emit, quote * num_quotes)
    emit('"')


def _string_rest(cursor: Cursor, emit: Emit, ending: str) -> Reading[None]:
    """From behind the opening quotes to behind the closing ones, which are not emitted."""
    quote, num_quotes = ending[0], 0
    while num_quotes < len(ending):
        if (yield from cursor.peek()) == quote:
            cursor.at += 1
            num_quotes += 1
            continue
        emit(_inside_json(quote * num_quotes))
        num_quotes = 0
        if cursor.text[cursor.at] == "\\":
            cursor.at += 1
            emit((yield from _escape(cursor)))
        else:
            yield from cursor.run(_IN_STRING[quote], lambda text: emit(_inside_json(text)))


def _escape(cursor: Cursor) -> Reading[str]:
    letter = yield from cursor.peek()
    cursor.at += 1
    if letter not in _CODE_LENGTHS:
        return _inside_json(_ESCAPES.get(letter, letter if letter in "\\'\"" else "\\" + letter))
    code = ""
    while len(code) < _CODE_LENGTHS[letter] and (yield from cursor.peek()) in _HEX:
        code += cursor.take(cursor.at + 1)
    if len(code) < _CODE_LENGTHS[letter] or int(code, 16) > 0x10FFFF:
        return _inside_json(f"\\{letter}{code}")
    return f"\\u{code}" if letter == "u" else json.dumps(chr(int(code, 16)))[1:-1]


def _inside_json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]
