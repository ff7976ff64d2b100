"""{"name": ..., "parameters": ...} as the whole answer or after <|python_tag|>, several with ; between: Llama 3."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from gateway.answers.parts import Reader
from gateway.tools.base import Call, Tool
from gateway.tools.cursor import Cursor, Reading
from gateway.tools.grammar import MORE_CALLS, Answer, lark, literal
from gateway.tools.json_call import call_rules, read_call, render_call
from gateway.tools.output import Output
from gateway.tools.reader import CallReader, Syntax

_BEGIN = "<|python_tag|>"


class Llama3JsonFormat:
    name = "llama3_json"
    markers = (_BEGIN,)

    def reader(self, new_id: Callable[[], str]) -> Reader:
        return CallReader(Syntax(_body, begins=(_BEGIN,), bare="{", between=(";",)), new_id)

    def render(self, calls: Sequence[Call]) -> str:
        return "; ".join(render_call(call, "parameters") for call in calls)

    def grammar(
        self, tools: Sequence[Tool], *, required: bool, parallel: bool, strict_only: bool, special: Mapping[str, int]
    ) -> str:
        rules = [
            f"calls: call ({literal('; ')} call){MORE_CALLS}" if parallel else "calls: call",
            *call_rules(tools, "parameters", strict_only=strict_only),
        ]
        return lark(Answer("calls", begin=_BEGIN, bare="{"), rules, required=required, special=special)


def _body(cursor: Cursor, output: Output, marker: str) -> Reading[None]:
    yield from cursor.skip_space()
    yield from read_call(cursor, output, certain=bool(marker))
