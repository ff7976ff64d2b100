"""Reading text that comes in pieces, as if it were whole: generators that yield where they need more.

Every decision depends on the characters alone, never on where a piece ended. Nothing is read twice.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

Result = TypeVar("Result")
Reading = Generator[None, None, Result]
Emit = Callable[[str], object]

SPACE = re.compile(r"[ \t\r\n]*")


class Malformed(Exception):
    """The character at the cursor cannot stand there."""


class End(Exception):
    """Thrown into a reading generator: no more text comes."""


class Cursor:
    __slots__ = ("_num_fed", "at", "text")

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self._num_fed = 0

    @property
    def place(self) -> int:
        """How many characters are behind the cursor, of all that were fed."""
        return self._num_fed - len(self.text) + self.at

    def feed(self, text: str) -> None:
        """The next piece. Readers ask for it when the one before is used up."""
        self.text = text
        self.at = 0
        self._num_fed += len(text)

    def take(self, end: int) -> str:
        """The text up to `end`, which is behind the cursor then."""
        taken = self.text[self.at : end]
        self.at = end
        return taken

    def put_back(self, text: str) -> None:
        if text:
            self.text = text + self.text[self.at :]
            self.at = 0

    def peek(self) -> Reading[str]:
        while self.at == len(self.text):
            yield
        return self.text[self.at]

    def expect(self, character: str) -> Reading[None]:
        if (yield from self.peek()) != character:
            raise Malformed
        self.at += 1

    def run(self, pattern: re.Pattern[str], emit: Emit) -> Reading[None]:
        """Emits characters as long as they match a pattern of single characters, such as [a-z]*."""
        while True:
            match = pattern.match(self.text, self.at)
            if match and match.end() > self.at:
                emit(self.take(match.end()))
            if self.at < len(self.text):
                return
            yield

    def collect(self, pattern: re.Pattern[str]) -> Reading[str]:
        taken: list[str] = []
        yield from self.run(pattern, taken.append)
        return "".join(taken)

    def skip_space(self) -> Reading[None]:
        yield from self.run(SPACE, _ignore)

    def literal(self, literals: Sequence[str], at_end: Emit) -> Reading[str | None]:
        """Takes the first of `literals` to be completed, if one stands here. What has been read when the text ends
        goes to `at_end`."""
        read = ""
        try:
            while read not in literals:
                read += yield from self.peek()
                if not any(literal.startswith(read) for literal in literals):
                    self.at += 1
                    self.put_back(read)
                    return None
                self.at += 1
        except End:
            at_end(read)
            raise
        return read


def _ignore(text: str) -> None:
    pass
