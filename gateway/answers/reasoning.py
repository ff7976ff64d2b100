"""Reasoning that stands before the answer, between two markers."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.answers.parts import Part, Reader, Reasoning, Text

_WHITESPACE = " \t\r\n"
_MAX_SPACE = 1024  # characters before the begin marker
_MAX_NEWLINES = 64  # left out before the end marker


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    begin: str = "<think>"
    end: str = "</think>"

    @property
    def markers(self) -> tuple[str, str]:
        """Must be visible in the answer's text, also where they are control tokens."""
        return self.begin, self.end

    def prompt_ends_inside(self, text_tail: str) -> bool:
        """Whether a prompt with this end has begun the reasoning itself."""
        return text_tail.rstrip(_WHITESPACE).endswith(self.begin)

    def reader(self, *, starts_inside: bool) -> Reader:
        return ReasoningReader(self, starts_inside=starts_inside)


FORMATS = (
    ReasoningFormat(),
    ReasoningFormat("[THINK]", "[/THINK]"),
    ReasoningFormat("<reasoning>", "</reasoning>"),
    ReasoningFormat("<thinking>", "</thinking>"),
    ReasoningFormat("<seed:think>", "</seed:think>"),
    ReasoningFormat("<|START_THINKING|>", "<|END_THINKING|>"),
)


def reasoning_format(template_source: str) -> ReasoningFormat | None:
    """The format whose markers a chat template mentions first, if any."""
    found = [
        (min(places), format)
        for format in FORMATS
        if (places := [place for marker in format.markers if (place := template_source.find(marker)) >= 0])
    ]
    return min(found, key=lambda pair: pair[0])[1] if found else None


class ReasoningReader:
    """Only a block at the very start is reasoning; later markers are text. Newlines next to markers are left out.

    whitespace <begin> newlines  reasoning  newlines <end> newlines  text
    """

    def __init__(self, format: ReasoningFormat, *, starts_inside: bool) -> None:
        self._format = format
        self._starts_inside = starts_inside
        self._held = ""
        self._num_read = 0
        self._has_reasoning = False
        self._step = self._before

    def push(self, text: str) -> list[Part]:
        parts: list[Part] = []
        self._held += text
        self._num_read += len(text)
        step = None
        while self._held and step != self._step:
            step = self._step
            parts += step()
        return parts

    def finish(self) -> list[Part]:
        held, self._held = self._held, ""
        if not held:
            return []
        if self._step == self._before and not self._starts_inside:
            return [Text(held)]
        return [] if self._step == self._after or not held.strip("\n") else self._reasoning(held)

    def _before(self) -> list[Part]:
        begin = self._format.begin
        text = self._held.lstrip(_WHITESPACE)
        is_near = len(self._held) - len(text) <= _MAX_SPACE
        if is_near and len(text) < len(begin) and begin.startswith(text):
            return []
        if is_near and text.startswith(begin):
            self._held = text[len(begin) :]
            self._step = self._inside
        else:
            self._step = self._inside if self._starts_inside else self._text
        return []

    def _inside(self) -> list[Part]:
        reasoning, end, rest = self._held.partition(self._format.end)
        if end:
            self._held, self._step = rest, self._after
            return self._reasoning(_without_newlines(reasoning))
        lengths = range(len(self._format.end) - 1, 0, -1)
        keep = next((length for length in lengths if reasoning.endswith(self._format.end[:length])), 0)
        certain = _without_newlines(reasoning[: len(reasoning) - keep])
        self._held = reasoning[len(certain) :]
        return self._reasoning(certain)

    def _reasoning(self, text: str) -> list[Part]:
        if not self._has_reasoning:
            text = text.lstrip("\n")
            self._has_reasoning = bool(text)
        return [Reasoning(text)] if text else []

    def _after(self) -> list[Part]:
        self._held = self._held.lstrip("\n")
        if self._held:
            self._step = self._text
        return []

    def _text(self) -> list[Part]:
        text, self._held = self._held, ""
        return [Text(text, self._num_read - len(text))]


def _without_newlines(reasoning: str) -> str:
    return reasoning[: max(len(reasoning.rstrip("\n")), len(reasoning) - _MAX_NEWLINES)]
