"""Pre-tokenisation: where a text is cut before merges, in stages that the vocabulary was trained with.

Ends with pieces of text; the step to bytes belongs to the merges. GGUF stores only a name for all of this, so the
names that are known for certain stand in a table here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

import regex

from gateway.tokenizer.unicode import as_known

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
QWEN35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Rust's idea of a numeric character, which is one Unicode version ahead of the library's regular expressions.
_NUMERIC = r"(?V1)[\p{N}--[\U0001246F\U00012475-\U0001247F\U00012550-\U00012686]]"

# What Oniguruma and `regex` read alike, or else the pattern is refused: few escapes; no anchors, which mean lines in
# one and the text in the other; no classes in classes, nor operations on them; no {n}+, possessive in only one of them.
_ESCAPE = regex.compile(r"\\(.)", regex.DOTALL)
_KNOWN_ESCAPES = frozenset("pPsSdDrnt")
_CLASS = regex.compile(r"\[\^?([^\]]+)\]")
_DOUBTFUL_IN_CLASSES = ("[", "&&")
_DOUBTFUL_CLASSES = ("[]", "[^]")
_DOUBTFUL = regex.compile(r"[$^]|\{[\d,]+\}\+")


class Stage(Protocol):
    def split(self, text: str) -> Iterable[str]:
        """Pieces of `text`, in order, none empty."""


class UnsureOfPattern(ValueError):
    """A regular expression that two engines may read differently."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Cuts at every match and between matches."""

    pattern: regex.Pattern[str]
    keep_matches: bool = True
    keep_between: bool = True
    as_library: bool = True  # see the text with the library's Unicode

    def split(self, text: str) -> Iterable[str]:
        seen = as_known(text) if self.as_library else text
        if self.keep_matches and seen == text and not self.pattern.groups:
            matches: list[str] = self.pattern.findall(text)
            if sum(map(len, matches)) == len(text):  # the usual case, four times as fast
                return filter(None, matches)
        return self._split(text, seen)

    def _split(self, text: str, seen: str) -> Iterator[str]:
        done = 0
        for match in self.pattern.finditer(seen):
            start, end = match.span()
            if start > done and self.keep_between:
                yield text[done:start]
            if end > start and self.keep_matches:
                yield text[start:end]
            done = end
        if done < len(text) and self.keep_between:
            yield text[done:]


@dataclass(frozen=True, slots=True)
class LeadingSpace:
    """Begins with a space, put there if need be."""

    def split(self, text: str) -> Iterable[str]:
        return (text if text.startswith(" ") else " " + text,)


@dataclass(frozen=True, slots=True)
class Pretokenizer:
    stages: Sequence[Stage]

    def pieces(self, text: str) -> Iterable[str]:
        pieces: Iterable[str] = (text,)
        for stage in self.stages:
            pieces = chain.from_iterable(map(stage.split, pieces))
        return pieces


def isolate(pattern: str) -> Cut:
    return Cut(regex.compile(pattern))


def digits(*, individual: bool) -> Cut:
    return Cut(regex.compile(_NUMERIC if individual else _NUMERIC + "+"), as_library=False)


def checked(pattern: str) -> regex.Pattern[str]:
    """A foreign pattern, compiled. Raises UnsureOfPattern."""
    escaped = set(_ESCAPE.findall(pattern))
    bare = _ESCAPE.sub("e", pattern)
    classes = "\n".join(_CLASS.findall(bare))
    doubtful = (
        not pattern,
        any(character.isalnum() for character in escaped - _KNOWN_ESCAPES),
        any(part in classes for part in _DOUBTFUL_IN_CLASSES),
        any(part in bare for part in _DOUBTFUL_CLASSES),
        _DOUBTFUL.search(_CLASS.sub("c", bare)),
    )
    if any(doubtful):
        raise UnsureOfPattern(pattern)
    try:
        return regex.compile(pattern)
    except regex.error as error:
        raise UnsureOfPattern(pattern) from error


@dataclass(frozen=True, slots=True)
class Family:
    """What a GGUF file means by a name in tokenizer.ggml.pre."""

    stages: tuple[Stage, ...]
    nfc: bool = False
    ignore_merges: bool = False
    add_bos: bool = False  # where the file does not say


_DIGITS_GPT2 = (digits(individual=True), isolate(GPT2))
_LLAMA3 = Family((isolate(LLAMA3),), ignore_merges=True, add_bos=True)

GGUF_FAMILIES: Mapping[str, Family] = {
    "gpt-2": Family((isolate(GPT2),)),
    "phi-2": Family((isolate(GPT2),)),
    "olmo": Family((isolate(GPT2),), nfc=True),
    "mpt": Family((isolate(GPT2),), nfc=True),
    "smollm": Family(_DIGITS_GPT2),
    "starcoder": Family(_DIGITS_GPT2),
    "refact": Family(_DIGITS_GPT2),
    "command-r": Family(_DIGITS_GPT2, nfc=True),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": Family((isolate(QWEN2),), nfc=True),
    "qwen35": Family((isolate(QWEN35),), nfc=True),
    "tekken": Family((isolate(TEKKEN),), ignore_merges=True, add_bos=True),
}
