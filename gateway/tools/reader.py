"""Finds calls among text. Knows markers, not what stands between them.

    text  <begin> body <end>  <begin> body <end>  text

A body that turns out not to be a call is text again, marker and all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

from gateway.answers.parts import Part
from gateway.tools.cursor import SPACE, Cursor, End, Malformed, Reading
from gateway.tools.output import Output

Body = Callable[[Cursor, Output, str], Reading[None]]
"""Reads what follows a begin marker, or what begins bare (then the marker is ""). Raises Malformed, with the cursor on
what cannot stand there."""


@dataclass(frozen=True, slots=True)
class Syntax:
    body: Body
    begins: tuple[str, ...]
    ends: tuple[str, ...] = ()
    bare: str = ""  # characters that begin calls without a marker, at the start and after other calls
    between: tuple[str, ...] = ()  # stands between calls, or after them, and means nothing


class CallReader:
    def __init__(self, syntax: Syntax, new_id: Callable[[], str]) -> None:
        self._syntax = syntax
        self._cursor = Cursor()
        self._output = Output(new_id)
        self._reading = self._read()

    def push(self, text: str) -> list[Part]:
        if text:
            self._cursor.feed(text)
            next(self._reading)
        return self._output.take()

    def finish(self) -> list[Part]:
        try:
            next(self._reading)
            self._reading.throw(End)
        except End:
            self._output.end()
        return self._output.take()

    def _text(self, text: str) -> None:
        """What has just been taken is text."""
        self._output.text(text, self._cursor.place)

    def _read(self) -> Reading[None]:
        syntax = self._syntax
        may_be_bare = True
        skipped: tuple[str, ...] = ()
        while True:
            marker = (yield from self._marker_here(skipped)) if may_be_bare else None
            if marker is None:
                marker = yield from self._text_until(syntax.begins, self._text)
            num_calls = self._output.num_calls
            is_whole = yield from self._body(marker)
            may_be_bare = self._output.num_calls > num_calls
            skipped = (*syntax.ends, *syntax.between) if may_be_bare else ()
            if may_be_bare and not is_whole:
                yield from self._skip_rest()

    def _marker_here(self, skipped: Sequence[str]) -> Reading[str | None]:
        """The begin marker of a call that begins right here, or None."""
        while True:
            yield from self._cursor.run(SPACE, self._text)
            if (yield from self._cursor.peek()) in self._syntax.bare:
                return ""
            at_end = _ignore if self._output.num_calls else self._text
            found = yield from self._cursor.literal((*self._syntax.begins, *skipped), at_end)
            if found not in skipped:
                return found

    def _text_until(self, markers: Sequence[str], emit: Callable[[str], None]) -> Reading[str]:
        """The first marker, which is taken; the text before it is emitted."""
        cursor, held = self._cursor, ""
        pattern = _any_of(markers)
        while True:
            cursor.put_back(held)
            match = pattern.search(cursor.text, cursor.at)
            if match:
                emit(cursor.take(match.start()))
                return cursor.take(match.end())
            num_held = _begun(markers, cursor.text[cursor.at :])
            emit(cursor.take(len(cursor.text) - num_held))
            held = cursor.take(len(cursor.text))
            try:
                yield
            except End:
                emit(held)
                raise

    def _body(self, marker: str) -> Reading[bool]:
        """Reads a body, and gives its text out as text if no call was in it. Whether it is whole."""
        cursor, output = self._cursor, self._output
        num_calls = output.num_calls
        raw = [marker]
        body = self._syntax.body(cursor, output, marker)
        is_whole = False
        while True:
            start = cursor.at
            try:
                next(body)
            except StopIteration:
                is_whole = True
                break
            except Malformed:
                break
            finally:
                if output.num_calls == num_calls:
                    raw.append(cursor.text[start : cursor.at])
            try:
                yield
            except End:
                if not output.num_calls:
                    self._text("".join(raw))
                raise
        if output.num_calls == num_calls:
            self._text("".join(raw))
        return is_whole

    def _skip_rest(self) -> Reading[None]:
        """Of a call that broke off after its name: nothing that anybody wants to read."""
        marker = yield from self._text_until((*self._syntax.begins, *self._syntax.ends), _ignore)
        self._cursor.put_back(marker)


def _any_of(markers: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, markers)) or "(?!)")


def _begun(markers: Sequence[str], text: str) -> int:
    """Length of the longest end of `text` that a marker begins with."""
    lengths = chain.from_iterable(range(1, min(len(marker), len(text) + 1)) for marker in markers)
    return max((length for length in lengths if any(m.startswith(text[-length:]) for m in markers)), default=0)


def _ignore(text: str) -> None:
    pass
