"""From the bytes of tokens to text that may be sent: whole characters, and nothing of a stop string.

Both classes take a stream in pieces of any size; how it was cut never changes what comes out. Neither knows tokens.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class Utf8Stream:
    """Incremental UTF-8. All that comes out, joined, is bytes.decode("utf-8", "replace") of all that went in."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, data: bytes) -> str:
        """The characters that `data` completes."""
        return self._decoder.decode(data)

    def flush(self) -> str:
        """The end of the stream: U+FFFD for a character that will not be completed."""
        return self._decoder.decode(b"", final=True)


class StopMatcher:
    """Finds the first stop string to be completed; of two completed by the same character, the longer one.

    Text is held back only while it could be the beginning of a stop string.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if "" in stops:
            raise ValueError("an empty stop string matches everywhere")
        self._patterns = [_Pattern(stop) for stop in sorted(stops, key=len, reverse=True)]
        self._first_characters = frozenset(stop[0] for stop in stops)
        self._held = ""
        self._matched = False

    def push(self, text: str) -> tuple[str, str | None]:
        """Text that may be sent now, and the stop string that was completed. After a match nothing more comes."""
        if self._matched:
            return "", None
        if not self._held and self._first_characters.isdisjoint(text):
            return text, None
        for position, character in enumerate(text, start=1):
            for pattern in self._patterns:
                if pattern.advance(character):
                    return self._match(self._held + text[:position], pattern.stop)
        return self._hold(self._held + text)

    def flush(self) -> str:
        """The end of the stream: what was held back and turned out to be no stop string."""
        held, self._held = self._held, ""
        return held

    def _match(self, text: str, stop: str) -> tuple[str, str]:
        self._held, self._matched = "", True
        return text[: -len(stop)], stop

    def _hold(self, text: str) -> tuple[str, None]:
        end = len(text) - max(pattern.matched for pattern in self._patterns)
        self._held = text[end:]
        return text[:end], None


class _Pattern:
    """One stop string, matched character by character as Knuth, Morris and Pratt do: linear, however it repeats."""

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.matched = 0  # the longest suffix of the text so far that is a prefix of `stop`
        self._fallbacks = _fallbacks(stop)

    def advance(self, character: str) -> bool:
        """Whether `character` completes the stop string."""
        while self.matched and self.stop[self.matched] != character:
            self.matched = self._fallbacks[self.matched]
        self.matched += self.stop[self.matched] == character
        return self.matched == len(self.stop)


def _fallbacks(stop: str) -> list[int]:
    """For each prefix length, the length of the longest shorter prefix that is also its suffix."""
    fallbacks, length = [0, 0], 0
    for character in stop[1:]:
        while length and stop[length] != character:
            length = fallbacks[length]
        length += stop[length] == character
        fallbacks.append(length)
    return fallbacks
