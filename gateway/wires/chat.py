"""Answers of /v1/chat/completions: for each choice a first chunk with the role, then what its deltas bring, then one
chunk with its finish_reason; the usage where it was asked for; [DONE]."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from msgspec import UNSET, UnsetType

from gateway.answers.choice import Delta
from gateway.answers.logprobs import chat_logprobs, prompt_logprobs
from gateway.answers.parts import CallArguments, CallStart, Part, Reasoning, Text, merged
from gateway.errors import ApiError
from gateway.openai import (
    AnswerMessage,
    CalledFunction,
    ChatChoice,
    ChatChunkChoice,
    ChatDelta,
    ChatLogprobs,
    FunctionDelta,
    PromptLogprobs,
    ToolCall,
    ToolCallDelta,
    Usage,
    WireFinish,
    encode,
)
from gateway.timeline.laps import Laps
from gateway.timeline.store import Timings, timings_of
from gateway.tokenizer.base import Tokenizer
from gateway.wires.base import DONE, Head, error_event, event

_ROLE = ChatDelta(role="assistant", content="")
_EMPTY = ChatDelta()


@dataclass(frozen=True, slots=True)
class ChatWants:
    """What a request asked of the answer's form."""

    logprobs: bool = False
    reasoning: bool = True
    usage: bool = False
    usage_on_each: bool = False
    prompt: Sequence[int] = ()
    token_ids: bool = False
    prompt_logprobs: bool = False
    timings: bool = False


@dataclass(slots=True)
class _State:
    """Of one choice under way."""

    opened: bool = False
    has_calls: bool = False


@dataclass(slots=True)
class ChatWire:
    head: Head
    tokenizer: Tokenizer
    wants: ChatWants
    _states: dict[int, _State] = field(default_factory=dict)

    def opening(self) -> bytes:
        return b""

    def events(self, delta: Delta, usage: Callable[[], Usage]) -> bytes:
        return b"".join(self._chunk(choice, usage) for choice in self._choices(delta))

    def _chunk(self, choice: ChatChunkChoice, usage: Callable[[], Usage]) -> bytes:
        told = (usage() if self.wants.usage_on_each else None) if self.wants.usage else UNSET
        ids = self._prompt_ids() if choice.delta is _ROLE and choice.index == 0 else UNSET
        return event(self.head.reply("chat.completion.chunk", [choice], told, ids))

    def _prompt_ids(self) -> list[int] | UnsetType:
        return list(self.wants.prompt) if self.wants.token_ids else UNSET

    def _choices(self, delta: Delta) -> Iterator[ChatChunkChoice]:
        index, state = delta.index, self._states.setdefault(delta.index, _State())
        if not state.opened:
            state.opened = True
            yield ChatChunkChoice(index, _ROLE, None, None)
        parts = self._parts(delta)
        state.has_calls = state.has_calls or any(isinstance(part, CallStart) for part in parts)
        shown: list[ChatDelta] = [_part_delta(part) for part in parts]
        if not shown and (delta.marks or delta.tokens):
            shown = [_EMPTY]
        logprobs, ids = self._logprobs_of(delta), delta.tokens or UNSET
        for position, each in enumerate(shown):  # the delta's logprobs and ids go with its first chunk
            first = position == 0
            yield ChatChunkChoice(index, each, logprobs if first else None, None, token_ids=ids if first else UNSET)
        if delta.finish is not None:
            finish = finish_of(delta, state.has_calls)
            yield ChatChunkChoice(index, _EMPTY, None, finish, delta.stop)

    def ending(self, usage: Usage, laps: Laps) -> bytes:
        if not (self.wants.usage or self.wants.timings):
            return DONE
        told, timings = usage if self.wants.usage else UNSET, self._timings(laps)
        return event(self.head.reply("chat.completion.chunk", [], told, timings=timings)) + DONE

    def _timings(self, laps: Laps) -> Timings | UnsetType:
        return timings_of(laps) if self.wants.timings else UNSET

    def failure(self, error: ApiError) -> bytes:
        return error_event(error)

    def whole(self, deltas: Sequence[Delta], usage: Usage, laps: Laps) -> bytes:
        choices = [self._whole_choice(delta) for delta in deltas]
        told: PromptLogprobs | UnsetType = UNSET
        if self.wants.prompt_logprobs:
            told = prompt_logprobs(deltas[0].prompt, self.wants.prompt, self.tokenizer)
        beside = (self._prompt_ids(), told, self._timings(laps))
        return encode(self.head.reply("chat.completion", [*choices], usage, *beside))

    def _whole_choice(self, delta: Delta) -> ChatChoice:
        parts = self._parts(delta)
        has_calls = any(isinstance(part, CallStart) for part in parts)
        finish = finish_of(delta, has_calls)
        ids = delta.tokens if self.wants.token_ids else UNSET
        return ChatChoice(delta.index, message(parts), self._logprobs_of(delta), finish, delta.stop, ids)

    def _parts(self, delta: Delta) -> list[Part]:
        return answer_parts(delta, self.wants.reasoning)

    def _logprobs_of(self, delta: Delta) -> ChatLogprobs | None:
        return chat_logprobs(delta.marks or (), self.tokenizer) if self.wants.logprobs else None


def answer_parts(delta: Delta, reasoning: bool = True) -> list[Part]:
    """What a delta adds to the answer; all of it is text where nothing was looked for."""
    if delta.parts is None:
        return [Text(delta.text)] if delta.text else []
    parts = merged(delta.parts)
    return parts if reasoning else [part for part in parts if not isinstance(part, Reasoning)]


def finish_of(delta: Delta, has_calls: bool) -> WireFinish:
    assert delta.finish is not None
    return "tool_calls" if has_calls and delta.finish == "stop" else delta.finish


def _part_delta(part: Part) -> ChatDelta:
    if isinstance(part, Text):
        return ChatDelta(content=part.text)
    if isinstance(part, Reasoning):
        return ChatDelta(reasoning_content=part.text, reasoning=part.text)
    if isinstance(part, CallStart):
        function = FunctionDelta(part.name, "")
        return ChatDelta(tool_calls=[ToolCallDelta(part.call, function, part.id, "function")])
    return ChatDelta(tool_calls=[ToolCallDelta(part.call, FunctionDelta(arguments=part.text))])


def message(parts: Sequence[Part]) -> AnswerMessage:
    text = "".join(part.text for part in parts if isinstance(part, Text))
    thought = "".join(part.text for part in parts if isinstance(part, Reasoning)) or UNSET
    calls = tool_calls(parts)
    return AnswerMessage("assistant", text if text or not calls else None, None, thought, thought, calls or UNSET)


def tool_calls(parts: Sequence[Part]) -> list[ToolCall]:
    arguments: dict[int, list[str]] = {}
    for part in parts:
        if isinstance(part, CallArguments):
            arguments.setdefault(part.call, []).append(part.text)
    return [
        ToolCall(part.id, CalledFunction(part.name, "".join(arguments.get(part.call, ()))))
        for part in parts
        if isinstance(part, CallStart)
    ]
