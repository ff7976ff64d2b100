"""<tool_call>{"name": ..., "arguments": ...}</tool_call>, one or more: Hermes, Qwen and others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from gateway.answers.parts import Reader
from gateway.tools.base import Call, Tool
from gateway.tools.cursor import Cursor, Reading
from gateway.tools.grammar import MORE_CALLS, Answer, lark, literal, marker
from gateway.tools.json_call import call_rules, read_call, render_call
from gateway.tools.output import Output
from gateway.tools.reader import CallReader, Syntax

_BEGIN, _END = "<tool_call>", "</tool_call>"


class HermesFormat:
    name = "hermes"
    markers = (_BEGIN, _END)

    def reader(self, new_id: Callable[[], str]) -> Reader:
        return CallReader(Syntax(_body, begins=(_BEGIN,), ends=(_END,), between=("}",)), new_id)

    def render(self, calls: Sequence[Call]) -> str:
        return "\n".join(f"{_BEGIN}\n{render_call(call)}\n{_END}" for call in calls)

    def grammar(
        self, tools: Sequence[Tool], *, required: bool, parallel: bool, strict_only: bool, special: Mapping[str, int]
    ) -> str:
        newline, begin, end = literal("\n"), marker(_BEGIN, special), marker(_END, special)
        more = f"({newline} {begin} inside){MORE_CALLS}" if parallel else ""
        rules = [
            f"calls: inside {more}",
            f"inside: {newline} call {newline} {end}",
            *call_rules(tools, "arguments", strict_only=strict_only),
        ]
        return lark(Answer("calls", begin=_BEGIN), rules, required=required, special=special)


def _body(cursor: Cursor, output: Output, marker: str) -> Reading[None]:
    yield from cursor.skip_space()
    yield from read_call(cursor, output, certain=True)
