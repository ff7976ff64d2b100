"""What people and programs see: answers on standard output, all else beside them, and no control codes of a model."""

from __future__ import annotations

from typing import TextIO

DIM, RED, PLAIN = "\x1b[2m", "\x1b[31m", "\x1b[0m"
WHOLE_LINE = "\r\x1b[K"
# C0 without tab and newline, DEL, C1: a model could move the cursor with them, or worse
_CONTROL = dict.fromkeys([*range(0x20), 0x7F, *range(0x80, 0xA0)])
del _CONTROL[9], _CONTROL[10]


def clean(text: str) -> str:
    return text.translate(_CONTROL)


class Plain:
    """The text of one answer and a newline, for pipes and files. Reasoning is left out."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._last = "\n"

    def reasoning(self, text: str) -> None:
        """Not shown."""

    def text(self, text: str) -> None:
        shown = clean(text)
        if shown:
            self._last = shown[-1]
            self._out.write(shown)
            self._out.flush()

    def end(self) -> None:
        if self._last != "\n":
            self._last = "\n"
            self._out.write("\n")
        self._out.flush()


class Screen(Plain):
    """Of a conversation."""

    def __init__(self, out: TextIO, notes: TextIO, is_styled: bool) -> None:
        """is_styled: where notes go to a terminal that has styles."""
        super().__init__(out)
        self._notes = notes
        self._is_styled = is_styled
        self._is_reasoning = False

    def reasoning(self, text: str) -> None:
        if text:
            self._write(clean(text), DIM)
            self._is_reasoning = True

    def text(self, text: str) -> None:
        if text and self._is_reasoning:
            self._is_reasoning = False
            self._write("\n\n", "")
            text = text.lstrip("\n")
        super().text(text)

    def end(self) -> None:
        if self._is_reasoning:
            self._is_reasoning = False
            self._write("\n", "")
        super().end()

    def note(self, line: str) -> None:
        self._write(clean(line) + "\n", DIM)

    def error(self, line: str) -> None:
        self._write(clean(line) + "\n", RED)

    def blank(self) -> None:
        self._write("\n", "")

    def _write(self, text: str, style: str) -> None:
        self._notes.write(f"{style}{text}{PLAIN}" if self._is_styled and style else text)
        self._notes.flush()


class Progress:
    """Of a start: one line in place on a terminal, nothing elsewhere."""

    def __init__(self, out: TextIO, is_shown: bool) -> None:
        self._out = out
        self._is_shown = is_shown
        self._is_there = False

    def show(self, text: str) -> None:
        if self._is_shown:
            self._is_there = True
            self._out.write(WHOLE_LINE + clean(text)[:78])
            self._out.flush()

    def close(self) -> None:
        if self._is_there:
            self._is_there = False
            self._out.write(WHOLE_LINE)
            self._out.flush()
