"""Answers of /v1/messages: blocks of text, thinking and calls, which a stream opens and closes one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import msgspec
from msgspec import UNSET, Raw

from gateway import openai
from gateway.answers.choice import Delta
from gateway.answers.parts import CallArguments, CallStart, Part, Reasoning, Text
from gateway.errors import ApiError
from gateway.http.error_shape import anthropic_body
from gateway.messages.types import (
    Block,
    Event,
    InputDelta,
    Message,
    MessageEnd,
    OutputDetails,
    SignatureDelta,
    StopReason,
    TextBlock,
    TextDelta,
    ThinkingBlock,
    ThinkingDelta,
    ToolUseBlock,
    Usage,
)
from gateway.openai import encode
from gateway.timeline.laps import Laps
from gateway.wires.base import Head
from gateway.wires.chat import answer_parts

_NO_INPUT = Raw(b"{}")


def named_event(event: Event) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (event.type.encode(), encode(event))


@dataclass(slots=True)
class MessagesWire:
    head: Head
    shows_thinking: bool = True
    fills_context: bool = False  # max_tokens is more than the context has room for
    _has_begun: bool = False
    _open: type[Block] | None = None  # the kind of the block under way
    _index: int = -1  # of the last block
    _has_calls: bool = False
    _end: MessageEnd | None = None

    def opening(self) -> bytes:
        """The first event tells of cached tokens, which are known with the first delta."""
        return b""

    def events(self, delta: Delta, usage: Callable[[], openai.Usage]) -> bytes:
        return b"".join(map(named_event, self._events(delta, usage)))

    def _events(self, delta: Delta, usage: Callable[[], openai.Usage]) -> Iterator[Event]:
        if not self._has_begun:
            self._has_begun = True
            yield Event("message_start", message=Message(self.head.id, self.head.model, [], told_usage(usage())))
        for part in answer_parts(delta):
            yield from self._part(part)
        if delta.finish is not None:
            yield from self._close()
            self._end = self._message_end(delta, self._has_calls)

    def _part(self, part: Part) -> Iterator[Event]:
        if isinstance(part, CallArguments):
            yield self._delta(InputDelta(part.text))
            return
        block = _opened(part)
        if self._open is not type(block) or isinstance(part, CallStart):
            yield from self._close()
            self._index += 1
            self._open = type(block)
            yield Event("content_block_start", self._index, content_block=block)
        if isinstance(part, Text):
            yield self._delta(TextDelta(part.text))
        elif isinstance(part, CallStart):
            self._has_calls = True
        elif self.shows_thinking:
            yield self._delta(ThinkingDelta(part.text))

    def _delta(self, delta: TextDelta | ThinkingDelta | SignatureDelta | InputDelta) -> Event:
        return Event("content_block_delta", self._index, delta=delta)

    def _close(self) -> Iterator[Event]:
        if self._open is None:
            return
        if self._open is ThinkingBlock:
            yield self._delta(SignatureDelta())
        self._open = None
        yield Event("content_block_stop", self._index)

    def ending(self, usage: openai.Usage, laps: Laps) -> bytes:
        end = Event("message_delta", delta=self._end or UNSET, usage=told_usage(usage))
        return named_event(end) + named_event(Event("message_stop"))

    def failure(self, error: ApiError) -> bytes:
        return b"event: error\ndata: %b\n\n" % encode(anthropic_body(error))

    def whole(self, deltas: Sequence[Delta], usage: openai.Usage, laps: Laps) -> bytes:
        (delta,) = deltas
        blocks = list(self._blocks(answer_parts(delta)))
        end = self._message_end(delta, any(isinstance(block, ToolUseBlock) for block in blocks))
        head = (self.head.id, self.head.model)
        return encode(Message(*head, blocks, told_usage(usage), end.stop_reason, end.stop_sequence))

    def _blocks(self, parts: Sequence[Part]) -> Iterator[Block]:
        inputs: dict[int, list[str]] = {}
        for part in parts:
            if isinstance(part, CallArguments):
                inputs.setdefault(part.call, []).append(part.text)
        for part in parts:
            if isinstance(part, Text):
                yield TextBlock(part.text)
            elif isinstance(part, Reasoning):
                yield ThinkingBlock(part.text if self.shows_thinking else "")
            elif isinstance(part, CallStart):
                yield ToolUseBlock(_tool_use_id(part), part.name, _input("".join(inputs.get(part.call, ()))))

    def _message_end(self, delta: Delta, has_calls: bool) -> MessageEnd:
        stop = delta.stop if isinstance(delta.stop, str) else None
        reason: StopReason
        if stop is not None:
            reason = "stop_sequence"
        elif delta.finish == "length":
            reason = "model_context_window_exceeded" if self.fills_context else "max_tokens"
        else:
            reason = "tool_use" if has_calls else "end_turn"
        return MessageEnd(reason, stop)


def _opened(part: Text | Reasoning | CallStart) -> Block:
    """The block that a part begins, as yet empty."""
    if isinstance(part, Text):
        return TextBlock("")
    return ThinkingBlock("") if isinstance(part, Reasoning) else ToolUseBlock(_tool_use_id(part), part.name, _NO_INPUT)


def _tool_use_id(call: CallStart) -> str:
    return "toolu_" + call.id.removeprefix("call_")


def _input(text: str) -> Raw:
    """An object always: of a call that was cut, or whose input is none, the empty one."""
    try:
        msgspec.json.decode(text, type=dict[str, object])
    except (msgspec.DecodeError, RecursionError):
        return _NO_INPUT
    return Raw(text.encode())


def told_usage(usage: openai.Usage) -> Usage:
    cached = usage.prompt_tokens_details.cached_tokens
    thinking = OutputDetails(usage.completion_tokens_details.reasoning_tokens)
    return Usage(usage.prompt_tokens - cached, usage.completion_tokens, cached, thinking)
