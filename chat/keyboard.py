"""Reads messages from a terminal: a line with readline's keys, or several. Ctrl-C and Ctrl-D are exceptions."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TextIO

from chat.commands import MULTI_LINE
from chat.history import History

try:
    import readline
except ImportError:  # a Python without it: lines without arrow keys
    readline = None  # type: ignore[assignment]
try:
    import termios
except ImportError:  # pragma: no cover
    termios = None  # type: ignore[assignment]

PROMPT, MORE = "> ", ". "
BINDINGS = (
    "set enable-bracketed-paste on",  # what is pasted is one message, newlines and all
    r'"\e\C-m": "\C-v\n"',  # Alt-Enter: a newline
)


class Dropped(KeyboardInterrupt):
    """Ctrl-C with something in the line, or within several lines."""


class Keyboard:
    def __init__(self, history: History, notes: TextIO, is_styled: bool) -> None:
        """notes: where prompts go."""
        self._history = history
        self._notes = notes
        self._is_styled = is_styled
        if readline is not None:
            readline.set_auto_history(False)  # a message of several lines is one entry
            if "libedit" not in (readline.__doc__ or ""):
                for binding in BINDINGS:
                    readline.parse_and_bind(binding)
            for entry in history.entries:
                readline.add_history(entry)

    def message(self) -> str:
        """Raises EOFError at Ctrl-D, Dropped or KeyboardInterrupt."""
        text = several(self._line).strip()
        self._history.add(text)
        if readline is not None and text:
            readline.add_history(text)
        return text

    def _line(self, prompt: str) -> str:
        try:
            if self._notes is not sys.stdout:  # where input() would write it
                self._notes.write(prompt)
                self._notes.flush()
                return input()
            return input(self._styled(prompt))
        except KeyboardInterrupt:
            if readline is not None and readline.get_line_buffer():
                raise Dropped from None
            raise

    def _styled(self, prompt: str) -> str:
        # between \1 and \2 is what takes no place on the screen
        return f"\1\x1b[1m\2{prompt}\1\x1b[0m\2" if self._is_styled and readline is not None else prompt


def several(read_line: Callable[[str], str]) -> str:
    '''One line; or those between two """, the first at the begin of a line, the second at the end of one.'''
    line = read_line(PROMPT)
    if not line.lstrip().startswith(MULTI_LINE):
        return line
    text = line.lstrip().removeprefix(MULTI_LINE)
    try:
        while not text.rstrip().endswith(MULTI_LINE):
            text += "\n" + read_line(MORE)
    except (KeyboardInterrupt, EOFError):
        raise Dropped from None
    return text.rstrip().removesuffix(MULTI_LINE)


@contextlib.contextmanager
def unechoed(terminal: TextIO) -> Iterator[None]:
    """What is typed while an answer comes does not appear within it; it is there for the next line."""
    if termios is None or not terminal.isatty():
        yield
        return
    before = termios.tcgetattr(terminal)
    quiet = list(before)
    quiet[3] = before[3] & ~termios.ECHO
    termios.tcsetattr(terminal, termios.TCSANOW, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSANOW, before)
