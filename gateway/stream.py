"""Answers on the wire, whole or as server-sent events.

A stream is: for each choice a first chunk (chat: the role), text chunks, one chunk with its finish_reason; then the
usage where it was asked for; then [DONE]. A stream that fails after its first byte ends with one event
{"error": {...}} and without [DONE]: its absence tells a reader that does not look at events that the answer is not
whole.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from msgspec import UNSET, UnsetType

from gateway import faults
from gateway.choice import Delta
from gateway.errors import ApiError
from gateway.exchange import Exchange
from gateway.generation import Generation
from gateway.logprobs import chat_logprobs, completion_logprobs
from gateway.openai import (
    AnswerMessage,
    ChatChoice,
    ChatChunkChoice,
    ChatDelta,
    ChatLogprobs,
    Choice,
    CompletionChoice,
    CompletionLogprobs,
    Reply,
    Usage,
    WireFinish,
    encode,
)
from gateway.tokenizer.base import Tokenizer

_log = logging.getLogger("headrace.stream")

DONE = b"data: [DONE]\n\n"
_ROLE = ChatDelta(role="assistant", content="")
_EMPTY = ChatDelta()

ReplyObject = Literal["chat.completion", "chat.completion.chunk", "text_completion"]


@dataclass(frozen=True, slots=True)
class Head:
    """What all chunks of an answer share."""

    id: str
    created: int
    model: str
    fingerprint: str

    def reply(self, kind: ReplyObject, choices: list[Choice], usage: Usage | UnsetType | None) -> Reply:
        return Reply(self.id, kind, self.created, self.model, self.fingerprint, choices, usage)


class Wire(Protocol):
    """One API's form of an answer."""

    answer_object: ReplyObject
    chunk_object: ReplyObject

    def first(self, index: int) -> Choice | None:
        """What opens a choice's stream."""

    def part(self, delta: Delta) -> Choice:
        """A chunk with the delta's text and logprobs, without its finish."""

    def last(self, index: int, finish: WireFinish) -> Choice:
        """The chunk that ends a choice."""

    def whole(self, delta: Delta, finish: WireFinish) -> Choice:
        """A choice at once."""


class ChatWire:
    answer_object: ReplyObject = "chat.completion"
    chunk_object: ReplyObject = "chat.completion.chunk"

    def __init__(self, tokenizer: Tokenizer, logprobs: bool) -> None:
        self._tokenizer = tokenizer
        self._logprobs = logprobs

    def first(self, index: int) -> Choice | None:
        return ChatChunkChoice(index, _ROLE, None, None)

    def part(self, delta: Delta) -> Choice:
        return ChatChunkChoice(delta.index, ChatDelta(content=delta.text), self._logprobs_of(delta), None)

    def last(self, index: int, finish: WireFinish) -> Choice:
        return ChatChunkChoice(index, _EMPTY, None, finish)

    def whole(self, delta: Delta, finish: WireFinish) -> Choice:
        return ChatChoice(delta.index, AnswerMessage("assistant", delta.text), self._logprobs_of(delta), finish)

    def _logprobs_of(self, delta: Delta) -> ChatLogprobs | None:
        return chat_logprobs(delta.marks or (), self._tokenizer) if self._logprobs else None


class CompletionWire:
    answer_object: ReplyObject = "text_completion"
    chunk_object: ReplyObject = "text_completion"

    def __init__(self, tokenizer: Tokenizer, logprobs: bool, echoes: Sequence[str], n: int) -> None:
        self._tokenizer = tokenizer
        self._logprobs = logprobs
        self._echoes = echoes
        self._n = n

    def _echo(self, index: int) -> str:
        return self._echoes[index // self._n] if self._echoes else ""

    def first(self, index: int) -> Choice | None:
        echo = self._echo(index)
        return CompletionChoice(index, echo, None, None) if echo else None

    def part(self, delta: Delta) -> Choice:
        return CompletionChoice(delta.index, delta.text, self._logprobs_of(delta), None)

    def last(self, index: int, finish: WireFinish) -> Choice:
        return CompletionChoice(index, "", None, finish)

    def whole(self, delta: Delta, finish: WireFinish) -> Choice:
        return CompletionChoice(delta.index, self._echo(delta.index) + delta.text, self._logprobs_of(delta), finish)

    def _logprobs_of(self, delta: Delta) -> CompletionLogprobs | None:
        if not self._logprobs:
            return None
        return completion_logprobs(delta.marks or (), self._tokenizer, len(self._echo(delta.index)))


class EventStream:
    """Chunks of one request, as bytes ready to send; what piled up since the last send goes out together."""

    def __init__(self, generation: Generation, wire: Wire, head: Head, exchange: Exchange, include_usage: bool) -> None:
        self._generation = generation
        self._wire = wire
        self._head = head
        self._exchange = exchange
        self._include_usage = include_usage
        self._opened: set[int] = set()
        self._num_unfinished = len(generation.choices)

    async def events(self) -> AsyncIterator[bytes]:
        try:
            while self._num_unfinished:
                deltas = await self._generation.mailbox.take()
                yield b"".join([self._event(choice) for delta in deltas for choice in self._chunks(delta)])
            self._exchange.outcome = outcome(self._generation)
            yield self._ending()
        except ApiError as error:
            self._exchange.fail(error)
            yield error_event(error)
        except Exception:
            _log.exception("request %s: its stream failed", self._exchange.request_id)
            fault = faults.internal(self._exchange.request_id)
            self._generation.stop("failed", fault)
            self._exchange.fail(fault)
            yield error_event(fault)

    def _chunks(self, delta: Delta) -> Iterator[Choice]:
        if delta.index not in self._opened:
            self._opened.add(delta.index)
            first = self._wire.first(delta.index)
            if first is not None:
                yield first
        if delta.text or delta.marks:
            yield self._wire.part(delta)
        if delta.finish is not None:
            self._num_unfinished -= 1
            yield self._wire.last(delta.index, delta.finish)

    def _event(self, choice: Choice) -> bytes:
        usage = None if self._include_usage else UNSET
        return b"data: %b\n\n" % encode(self._head.reply(self._wire.chunk_object, [choice], usage))

    def _ending(self) -> bytes:
        if not self._include_usage:
            return DONE
        reply = self._head.reply(self._wire.chunk_object, [], self._generation.usage)
        return b"data: %b\n\n%b" % (encode(reply), DONE)


def error_event(error: ApiError) -> bytes:
    return b"data: %b\n\n" % encode(error.body())


def outcome(generation: Generation) -> str:
    return "length" if any(choice.finish == "length" for choice in generation.choices) else "stop"


async def whole_answer(generation: Generation, wire: Wire, head: Head) -> bytes:
    """Raises the ApiError that ended the request."""
    await generation.finished()
    deltas = sorted(await generation.mailbox.take(), key=lambda delta: delta.index)
    choices = [wire.whole(delta, delta.finish or "stop") for delta in deltas]
    return encode(head.reply(wire.answer_object, choices, generation.usage))
