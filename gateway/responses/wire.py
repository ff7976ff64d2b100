"""Answers of /v1/responses: one Response, or the events of its making. What has ended is kept where that was asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import msgspec

from gateway.answers.choice import Delta
from gateway.answers.logprobs import chat_logprobs
from gateway.errors import ApiError
from gateway.openai import Usage, encode
from gateway.responses.output import Entry, Output
from gateway.responses.types import (
    ErrorEvent,
    Event,
    IncompleteDetails,
    InputDetails,
    OutputDetails,
    Response,
    ResponseError,
    ResponseEvent,
    ResponseStatus,
    ResponseUsage,
)
from gateway.timeline.laps import Laps
from gateway.tokenizer.base import Tokenizer
from gateway.wires.chat import answer_parts

Keep = Callable[[Response], None]


@dataclass(slots=True)
class ResponsesWire:
    base: Response  # as it is before the first token
    tokenizer: Tokenizer
    logprobs: bool
    keep: Keep
    now: Callable[[], float]
    output: Output
    _num_events: int = 0
    _is_cut: bool = field(default=False)

    def opening(self) -> bytes:
        base = self.base
        return self._sent(ResponseEvent(type=f"response.{name}", response=base) for name in ("created", "in_progress"))

    def events(self, delta: Delta, usage: Callable[[], Usage]) -> bytes:
        self._is_cut = self._is_cut or delta.finish == "length"
        return self._sent(self.output.push(answer_parts(delta), self._logprobs_of(delta)))

    def ending(self, usage: Usage, laps: Laps) -> bytes:
        data = self._sent(self.output.finish("incomplete" if self._is_cut else "completed"))
        response = self._ended(usage)
        return data + self._sent([ResponseEvent(type=f"response.{response.status}", response=response)])

    def failure(self, error: ApiError) -> bytes:
        response = self.failed(error)
        told = ErrorEvent(type="error", code=error.code, message=error.message, param=error.param)
        return self._sent([told, ResponseEvent(type="response.failed", response=response)])

    def failed(self, error: ApiError) -> Response:
        return self._kept("failed", error=ResponseError("server_error", error.message))

    def cancelled(self) -> Response:
        return self._kept("cancelled")

    def queued(self) -> Response:
        return self._kept("queued")

    def started(self) -> Response:
        return self._kept("in_progress")

    def whole(self, deltas: Sequence[Delta], usage: Usage, laps: Laps) -> bytes:
        for delta in deltas:
            self.events(delta, lambda: usage)
        self._sent(self.output.finish("incomplete" if self._is_cut else "completed"))
        return encode(self._ended(usage))

    def _ended(self, usage: Usage) -> Response:
        told = ResponseUsage(
            usage.prompt_tokens,
            InputDetails(usage.prompt_tokens_details.cached_tokens),
            usage.completion_tokens,
            OutputDetails(usage.completion_tokens_details.reasoning_tokens),
            usage.total_tokens,
        )
        if self._is_cut:
            return self._kept("incomplete", usage=told, incomplete_details=IncompleteDetails())
        return self._kept("completed", usage=told, completed_at=int(self.now()))

    def _kept(self, status: ResponseStatus, **changes: object) -> Response:
        output = self.output.items()
        response = msgspec.structs.replace(self.base, status=status, output=output, **changes)
        self.keep(response)
        return response

    def _sent(self, events: Iterable[Event]) -> bytes:
        return b"".join([self._numbered(each) for each in events])

    def _numbered(self, event: Event) -> bytes:
        event.sequence_number = self._num_events
        self._num_events += 1
        return b"event: %b\ndata: %b\n\n" % (event.type.encode(), encode(event))

    def _logprobs_of(self, delta: Delta) -> list[Entry]:
        marks = (delta.marks or ()) if self.logprobs else ()
        told = chat_logprobs(marks, self.tokenizer).content
        return [Entry(mark.offset, mark.end, logprob) for mark, logprob in zip(marks, told, strict=True)]
