"""One choice's text, from its tokens: whole characters only, stop strings cut, every logprob exactly once.

        decoded   |<-------------- num_chars -------------->|
        sent      |<------- num_sent ------->|   held back: may become a stop string, or half a character

A token's logprob leaves with the text that ends it, so no reader sees a logprob before its text.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from msgspec import UNSET, UnsetType

from gateway.answers.parts import Part, Reader, Reasoning
from gateway.answers.text import StopMatcher, Utf8Stream
from gateway.openai import Finish
from gateway.requests.convert import TextRules
from gateway.tokenizer.base import Tokenizer
from scheduler.plan import PromptResult, TokenLogprob
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
    parts: list[Part] | None = None  # what a reader made of the text; None: there is no reader
    marks: list[Mark] | None = None
    tokens: list[int] = field(default_factory=list)  # where the request wants them
    prompt: PromptResult | None = None
    finish: Finish | None = None
    stop: str | int | UnsetType = UNSET  # the stop string or the request's own stop id that ended it

    def __bool__(self) -> bool:
        return bool(self.text or self.parts or self.marks or self.tokens or self.prompt or self.finish)


@dataclass(frozen=True, slots=True)
class ChoiceSpec:
    """What the choices of a prompt have in common."""

    tokenizer: Tokenizer
    rules: TextRules
    eos_ids: frozenset[int]
    stop_ids: frozenset[int]  # those of eos_ids that count, and the request's own
    min_tokens: int  # stop strings are not looked for in the text of so many tokens
    logprobs: bool


class Choice:
    def __init__(self, index: int, spec: ChoiceSpec) -> None:
        self.index = index
        self.num_tokens = 0  # used: up to the one that completed a stop string, or that ended the sequence
        self.num_reasoning = 0  # of which before the answer proper
        self.finish: Finish | None = None
        self._spec = spec
        self._utf8 = Utf8Stream()
        self._matcher = StopMatcher(list(spec.rules.stops)) if spec.rules.stops else None
        self._reader: Reader | None = spec.rules.reader() if spec.rules.reader else None
        self._marks: deque[Mark] = deque()
        self._num_chars = 0
        self._num_sent = 0
        rules = spec.rules
        self.is_plain = not (rules.stops or rules.reader or rules.token_ids or spec.logprobs)  # its text is all of it

    def push_plain(self, tokens: Sequence[int]) -> str:
        """As `push` of a plain choice's output that ends nothing, in less time: its text."""
        self.num_tokens += len(tokens)
        bytes_of = self._spec.tokenizer.token_bytes
        text = self._utf8.push(b"".join([bytes_of(token) for token in tokens if not self._is_hidden(token)]))
        self._num_chars += len(text)
        self._num_sent += len(text)
        return text

    def _is_hidden(self, token: int) -> bool:
        tokenizer = self._spec.tokenizer
        if token >= tokenizer.vocab_size:
            return True
        return tokenizer.is_special(token) and token not in self._spec.rules.visible_ids

    def push(self, output: Output) -> Delta:
        """After a finish, outputs that were already under way change nothing."""
        delta = Delta(self.index)
        if self.finish is not None:
            return delta
        for position, token in enumerate(output.tokens):
            ends_sequence = output.finish == "stop" and position == len(output.tokens) - 1
            text = self._decode(token, ends_sequence)
            self.num_tokens += 1
            if self._spec.rules.token_ids:
                delta.tokens.append(token)
            if self._spec.logprobs:
                self._mark(token, text, output.logprobs, position)
            self._num_chars += len(text)
            if text and self._send(text, delta):
                break
        if self.finish is None and output.finish is not None:
            self._end(output, delta)
        if self._reader is not None:
            self._read(self._reader, delta)
        self._release_marks(delta)
        return delta

    def _read(self, reader: Reader, delta: Delta) -> None:
        delta.parts = reader.push(delta.text)
        if any(isinstance(part, Reasoning) for part in delta.parts):
            self.num_reasoning = self.num_tokens
        if self.finish is not None:
            delta.parts = [*delta.parts, *reader.finish()]

    def _decode(self, token: int, ends_sequence: bool) -> str:
        """Control tokens, and the stop id that ended the sequence, are not part of the text, unless asked for."""
        ends_it = ends_sequence and token in self._spec.stop_ids and not self._spec.rules.include_stop
        if ends_it or self._is_hidden(token):
            return ""
        return self._utf8.push(self._spec.tokenizer.token_bytes(token))

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
        if self._spec.rules.include_stop:
            delta.text += matched
        self.finish = delta.finish = "stop"
        delta.stop = matched
        return True

    def _end(self, output: Output, delta: Delta) -> None:
        # Half a character at the very end: the model wrote it so, or it was cut, and then it is left out.
        tail = self._utf8.flush() if output.finish == "stop" else ""
        self._num_chars += len(tail)
        if tail and self._send(tail, delta):
            return
        if self._matcher is not None:
            delta.text += self._matcher.flush()
        self.finish = delta.finish = "stop" if output.finish == "stop" else "length"
        last = output.tokens[-1] if output.tokens and output.finish == "stop" else None
        if last in self._spec.stop_ids and last not in self._spec.eos_ids:
            delta.stop = last

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
