"""Added tokens: finding their literals in text, as the tokenizers library does, longest first."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import regex

_WORD = r"[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]"
_word = regex.compile(_WORD)
_spaces_before = regex.compile(r"(?r)\s*")  # searched backwards from a position
_spaces = regex.compile(r"\s*")


@dataclass(frozen=True, slots=True)
class AddedToken:
    id: int
    content: str
    special: bool  # a control token: never part of an answer's text, nor encoded from a user's
    lstrip: bool = False  # takes the whitespace before it along
    rstrip: bool = False
    single_word: bool = False  # only between characters that are no part of a word
    normalized: bool = False  # looked for in normalised text


Part = str | AddedToken


class Splitter:
    """Cuts text at literals of added tokens."""

    def __init__(self, tokens: Mapping[str, AddedToken]) -> None:
        self._tokens = tokens  # by literal
        longest_first = sorted(tokens, key=len, reverse=True)
        self._literals = re.compile("|".join(map(re.escape, longest_first)))
        self._only_special = all(token.special for token in tokens.values())

    def split(self, text: str, *, specials: bool) -> Iterator[Part]:
        """Parts of `text` in order. Without specials, literals of special tokens stay text."""
        if not self._tokens or (self._only_special and not specials):
            return iter([text] if text else [])
        return self._split(text, specials)

    def _split(self, text: str, specials: bool) -> Iterator[Part]:
        done = 0
        for match in self._literals.finditer(text):
            token = self._tokens[match.group()]
            if (token.special and not specials) or (token.single_word and _touches_word(text, match)):
                continue
            start, end = match.span()
            if token.lstrip:
                start = max(done, _start_of_spaces(text, start))
            if token.rstrip:
                end = _end_of_spaces(text, end)
            if start > done:
                yield text[done:start]
            yield token
            done = end
        if done < len(text):
            yield text[done:]


def _touches_word(text: str, match: re.Match[str]) -> bool:
    start, end = match.span()
    before, after = text[start - 1 : start] if start else "", text[end : end + 1]
    return any(_word.match(character) for character in (before, after))


def _start_of_spaces(text: str, end: int) -> int:
    match = _spaces_before.match(text, 0, end)
    return match.start() if match else end


def _end_of_spaces(text: str, start: int) -> int:
    match = _spaces.match(text, start)
    return match.end() if match else start
