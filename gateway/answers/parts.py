"""What an answer's text consists of, and the protocol of the readers that find it there. Knows no format.

A reader takes the text in pieces of any size; how it was cut changes nothing but where its parts are cut.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Text:
    """Between two parts of another kind, text has no gaps: of such neighbours the first's start says all."""

    text: str
    start: int = field(default=0, compare=False)  # characters of what was read before it


@dataclass(frozen=True, slots=True)
class Reasoning:
    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """Comes once a call, before its arguments. Calls are numbered from 0 in the order of their starts."""

    call: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """A piece of the call's arguments; joined they are one JSON text, unless the answer was cut."""

    call: int
    text: str


Part = Text | Reasoning | CallStart | CallArguments


class Reader(Protocol):
    def push(self, text: str) -> list[Part]:
        """The parts that are certain now."""

    def finish(self) -> list[Part]:
        """The end of the text: what was held back. Nothing is pushed after it."""


class PlainReader:
    """All is text."""

    def push(self, text: str) -> list[Part]:
        return [Text(text)] if text else []

    def finish(self) -> list[Part]:
        return []


class ChainedReader:
    """What the first reader leaves as text, the second one reads."""

    def __init__(self, first: Reader, second: Reader) -> None:
        self._first = first
        self._second = second
        self._start: int | None = None  # of the text that the second one reads

    def push(self, text: str) -> list[Part]:
        return self._read(self._first.push(text))

    def finish(self) -> list[Part]:
        return [*self._read(self._first.finish()), *self._moved(self._second.finish())]

    def _read(self, parts: list[Part]) -> list[Part]:
        read: list[Part] = []
        for part in parts:
            if isinstance(part, Text):
                self._start = part.start if self._start is None else self._start
                read += self._moved(self._second.push(part.text))
            else:
                read.append(part)
        return read

    def _moved(self, parts: list[Part]) -> list[Part]:
        start = self._start
        if not start:
            return parts
        return [replace(part, start=start + part.start) if isinstance(part, Text) else part for part in parts]


def merged(parts: Iterable[Part]) -> list[Part]:
    """The same parts with neighbours of one kind joined: the form that does not depend on how the text was cut."""
    groups: list[list[Part]] = []
    for part in parts:
        if groups and _continues(groups[-1][-1], part):
            groups[-1].append(part)
        else:
            groups.append([part])
    return [_joined(group) for group in groups]


def _continues(before: Part, part: Part) -> bool:
    if isinstance(part, CallArguments):
        return isinstance(before, CallArguments) and before.call == part.call
    return type(before) is type(part) and not isinstance(part, CallStart)


def _joined(group: list[Part]) -> Part:
    first = group[0]
    if isinstance(first, CallStart):
        return first
    text = "".join(part.text for part in group if not isinstance(part, CallStart))
    return replace(first, text=text)
