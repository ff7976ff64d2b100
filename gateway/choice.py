"""One choice's text, from its tokens: whole characters only, stop strings cut, every logprob exactly once.

        decoded   |<-------------- num_chars -------------->|
        sent      |<------- num_sent ------->|   held back: may become a stop string, or half a character

A token's logprob leaves with the text that ends it, so no reader sees a logprob before its text.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from gateway.openai import WireFinish
from gateway.text import StopMatcher, Utf8Stream
from gateway.tokenizer.base import Tokenizer
from scheduler.plan import TokenLogprob
from scheduler.protocol import Output


@dataclass(frozen=True, slots=True)
class Mark:
    """One used token with its logprob. Turned into JSON only when it is sent."""

    token: int
    offset: int  # characters of decoded text before it
    end: int  # its text is complete once so many characters are out
    logprob: TokenLogprob


@dataclass(slots=True)
class Delta:
    """What one output, or several merged, add to a choice."""

    index: int
    text: str = ""
    marks: list[Mark] | None = None
    finish: WireFinish | None = None

    def __bool__(self) -> bool:
        return bool(self.text or self.marks or self.finish)


@dataclass(frozen=True, slots=True)
class ChoiceSpec:
    """What the choices of a request have in common."""

    tokenizer: Tokenizer
    stops: tuple[str, ...]
    stop_ids: frozenset[int]
    min_tokens: int  # stop strings are not looked for in the text of so many tokens
    logprobs: bool


class Choice:
    def __init__(self, index: int, spec: ChoiceSpec) -> None:
        self.index = index
        self.num_tokens = 0  # used: up to the one that completed a stop string, or that ended the sequence
        self.finish: WireFinish | None = None
        self._spec = spec
        self._utf8 = Utf8Stream()
        self._matcher = StopMatcher(list(spec.stops)) if spec.stops else None
        self._marks: deque[Mark] = deque()
        self._num_chars = 0
        self._num_sent = 0

    def push(self, output: Output) -> Delta:
        """After a finish, outputs that were already under way change nothing."""
        delta = Delta(self.index)
        if self.finish is not None:
            return delta
        for position, token in enumerate(output.tokens):
            ends_sequence = output.finish == "stop" and position == len(output.tokens) - 1
            text = self._decode(token, ends_sequence)
            self.num_tokens += 1
            if self._spec.logprobs:
                self._mark(token, text, output.logprobs, position)
            self._num_chars += len(text)
            if text and self._send(text, delta):
                break
        if self.finish is None and output.finish is not None:
            self._end(output, delta)
        self._release_marks(delta)
        return delta

    def _decode(self, token: int, ends_sequence: bool) -> str:
        """Control tokens, and the stop id that ended the sequence, are not part of the text."""
        tokenizer = self._spec.tokenizer
        if (ends_sequence and token in self._spec.stop_ids) or not token < tokenizer.vocab_size:
            return ""
        return "" if tokenizer.is_special(token) else self._utf8.push(tokenizer.token_bytes(token))

    def _send(self, text: str, delta: Delta) -> bool:
        """Adds what may be sent of `text`. True if a stop string ended the choice."""
        if self._matcher is None or self.num_tokens <= self._spec.min_tokens:
            delta.text += text
            self._num_sent += len(text)
            return False
        ready, matched = self._matcher.push(text)
        delta.text += ready
        self._num_sent += len(ready)
        if matched is None:
            return False
        self.finish = delta.finish = "stop"
        return True

    def _end(self, output: Output, delta: Delta) -> None:
        tail = self._utf8.flush()  # half a character at the very end, as U+FFFD
        self._num_chars += len(tail)
        if tail and self._send(tail, delta):
            return
        if self._matcher is not None:
            delta.text += self._matcher.flush()
        self.finish = delta.finish = "stop" if output.finish == "stop" else "length"

    def _mark(self, token: int, text: str, logprobs: Sequence[TokenLogprob] | None, position: int) -> None:
        if logprobs is None or position >= len(logprobs):
            raise RuntimeError(f"the engine sent {len(logprobs or ())} logprobs for token {position} of an output")
        end = self._num_chars + len(text)
        if not text and not self._is_control(token):
            end += 1  # bytes of a character that a later token completes
        self._marks.append(Mark(token, self._num_chars, end, logprobs[position]))

    def _is_control(self, token: int) -> bool:
        tokenizer = self._spec.tokenizer
        return token in self._spec.stop_ids or token >= tokenizer.vocab_size or tokenizer.is_special(token)

    def _release_marks(self, delta: Delta) -> None:
        marks = self._marks
        ready = []
        while marks and (self.finish is not None or marks[0].end <= self._num_sent):
            ready.append(marks.popleft())
        if ready:
            delta.marks = ready
