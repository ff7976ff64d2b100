"""[f(a=1, b="x"), g()] as the whole answer, or between markers: Llama 3.2 and 4, LFM2 and others."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gateway.answers.parts import Reader
from gateway.tools.base import Call, Tool
from gateway.tools.cursor import Cursor, Reading
from gateway.tools.grammar import MORE_CALLS, Answer, lark, literal, marker
from gateway.tools.output import Output
from gateway.tools.python_call import read_calls
from gateway.tools.python_grammar import call_rules, keyword
from gateway.tools.reader import CallReader, Syntax

PAIRS = (("<|tool_call_start|>", "<|tool_call_end|>"), ("<|python_start|>", "<|python_end|>"))
_BEGINS, _ENDS = zip(*PAIRS, strict=True)
_CONSTANTS = {True: "True", False: "False", None: "None"}


class PythonicFormat:
    """pair: the markers that the model was trained to write, if any. All of them are read, and none."""

    name = "pythonic"
    markers = (*_BEGINS, *_ENDS)

    def __init__(self, pair: tuple[str, str] | None = None) -> None:
        self._pair = pair

    def reader(self, new_id: Callable[[], str]) -> Reader:
        return CallReader(Syntax(_body, begins=_BEGINS, ends=_ENDS, bare="["), new_id)

    def render(self, calls: Sequence[Call]) -> str:
        begin, end = self._pair or ("", "")
        return f"{begin}[{', '.join(map(_render_call, calls))}]{end}"

    def grammar(
        self, tools: Sequence[Tool], *, required: bool, parallel: bool, strict_only: bool, special: Mapping[str, int]
    ) -> str:
        more = f"({literal(', ')} call){MORE_CALLS}" if parallel else ""
        end = marker(self._pair[1], special) if self._pair else ""
        rules = [f"calls: {literal('[')} call {more} {literal(']')} {end}", *call_rules(tools, strict_only=strict_only)]
        answer = Answer("calls", begin=self._pair[0]) if self._pair else Answer("calls", begin=None, bare="[")
        return lark(answer, rules, required=required, special=special)


def _body(cursor: Cursor, output: Output, marker: str) -> Reading[None]:
    yield from cursor.skip_space()
    yield from read_calls(cursor, output)


def _render_call(call: Call) -> str:
    try:
        arguments = json.loads(call.arguments)
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        return f"{call.name}({call.arguments})"
    return f"{call.name}({', '.join(f'{keyword(key)}={_python(value)}' for key, value in arguments.items())})"


def _python(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_python(key)}: {_python(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(_python, value))}]"
    if value is None or isinstance(value, bool):
        return _CONSTANTS[value]
    return json.dumps(value, ensure_ascii=False)
