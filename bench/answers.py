"""From the bytes of an answer and their times to what a request saw: waits, tokens, or why it failed."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from bench.client import Answer

SHOWN_CHARS = 200


class _Delta(msgspec.Struct):
    content: object = None
    reasoning_content: object = None
    reasoning: object = None
    tool_calls: object = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None

    @property
    def has_token(self) -> bool:
        """Not a role, the end or the usage alone. The text of a completion may be empty: half a character."""
        if self.text is not None:
            return bool(self.text) or not self.finish_reason
        told = self.delta
        return bool(told and (told.content or told.reasoning_content or told.reasoning or told.tool_calls))


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _PromptDetails | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: object = None


class _Problem(msgspec.Struct):
    """An error as OpenAI's API writes it, or one of the ways that others do."""

    message: str = ""
    code: str | int | None = None
    type: str | None = None


class _ErrorBody(msgspec.Struct):
    error: _Problem | str | None = None
    message: str = ""
    code: str | int | None = None
    type: str | None = None


_event = msgspec.json.Decoder(_Event)
_error_body = msgspec.json.Decoder(_ErrorBody)


@dataclass(frozen=True, slots=True)
class Failure:
    name: str  # the same for all of one kind
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """One request. Waits in seconds."""

    failure: Failure | None
    ttft_s: float = 0.0
    e2e_s: float = 0.0
    tpot_s: float | None = None  # of an answer of one token there is none
    gaps_s: array[float] = field(default_factory=lambda: array("d"))  # between reads with tokens
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    is_short: bool = False  # fewer tokens than were asked for
    is_counted_here: bool = False  # the server told no usage: a token is an event
    late_s: float = 0.0


def read(answer: Answer) -> Seen:
    """Of a streamed answer."""
    failure = failure_of(answer)
    if failure:
        return Seen(failure)
    try:
        stream = _read_stream(answer)
    except msgspec.MsgspecError as error:
        return Seen(Failure("an event that is not as OpenAI's", str(error)[:SHOWN_CHARS]))
    if stream.failure or not stream.times:
        return Seen(stream.failure or Failure("an answer without a token"))
    if not stream.is_whole:
        return Seen(Failure("a stream without an end"))
    first, last = stream.times[0], stream.times[-1]
    usage = stream.usage or _Usage(completion_tokens=stream.num_events)
    num = usage.completion_tokens
    cached = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else 0
    return Seen(
        failure=None,
        ttft_s=first - answer.sent_s,
        e2e_s=answer.ended_s - answer.sent_s,
        tpot_s=(last - first) / (num - 1) if num > 1 else None,
        gaps_s=array("d", (after - before for before, after in itertools.pairwise(stream.times))),
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=cached or 0,
        output_tokens=num,
        is_short=num < answer.output_len,
        is_counted_here=stream.usage is None,
        late_s=answer.late_s,
    )


def failure_of(answer: Answer) -> Failure | None:
    """Of any answer, streamed or not."""
    if answer.failure:
        return Failure(answer.failure)
    if 200 <= answer.status < 300:
        return None
    try:
        said = _error_body.decode(answer.body)
    except msgspec.MsgspecError:
        return Failure(f"HTTP {answer.status}", _shown(answer.body.decode(errors="replace")))
    problem = said.error
    if not isinstance(problem, _Problem):
        problem = _Problem(problem or said.message, said.code, said.type)
    kind = next((str(word) for word in (problem.code, problem.type) if word and word != answer.status), "")
    return Failure(f"HTTP {answer.status} {kind}".rstrip()[:SHOWN_CHARS], _shown(problem.message))


def _shown(text: str) -> str:
    return " ".join(text.split())[:SHOWN_CHARS]


@dataclass(slots=True)
class _Stream:
    times: list[float] = field(default_factory=list)  # of reads with tokens
    num_events: int = 0  # with tokens
    usage: _Usage | None = None
    failure: Failure | None = None
    is_whole: bool = False


def _read_stream(answer: Answer) -> _Stream:
    stream = _Stream()
    for at_s, data in _events(answer):
        if data == b"[DONE]":
            stream.is_whole = True
            continue
        event = _event.decode(data)
        if event.error:
            stream.failure = Failure("an error within a stream", _shown(str(event.error)))
        stream.usage = event.usage or stream.usage
        if any(choice.has_token for choice in event.choices):
            stream.num_events += 1
            if not stream.times or stream.times[-1] != at_s:
                stream.times.append(at_s)
        stream.is_whole |= any(choice.finish_reason is not None for choice in event.choices)
    return stream


def _events(answer: Answer) -> Iterator[tuple[float, bytes]]:
    """(time, data) of each line of data that has ended, at the time of the read that had its end."""
    at, read = 0, 0
    body, ends = answer.body, answer.read_ends
    while (end := body.find(b"\n", at)) >= 0:
        while ends[read] <= end:
            read += 1
        if body.startswith(b"data:", at):
            yield answer.read_times[read], bytes(body[at + 5 : end]).strip()
        at = end + 1
