"""From the parts of an answer to the items of a response, and the events that tell of each."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from msgspec import UNSET, UnsetType

from gateway.answers.parts import CallArguments, CallStart, Part, Reasoning, Text
from gateway.openai import ChatLogprob
from gateway.responses.types import (
    ArgumentsEvent,
    Event,
    FunctionCall,
    Item,
    ItemEvent,
    Message,
    OutputText,
    PartEvent,
    ReasoningItem,
    ReasoningText,
    Status,
    TextEvent,
)

_PREFIXES: dict[type[Part], str] = {Reasoning: "rs", Text: "msg", CallStart: "fc"}


@dataclass(frozen=True, slots=True)
class Entry:
    """A token's logprob, and which characters of the whole answer are its text; control tokens have none."""

    start: int
    end: int
    logprob: ChatLogprob

    def is_before(self, place: int) -> bool:
        return self.end <= place and self.start < place

    def is_in(self, start: int, end: int) -> bool:
        """Also in part. Without text: if it stands beside or in it."""
        return start <= self.start <= end if self.start == self.end else self.start < end and self.end > start


@dataclass(slots=True)
class _Open:
    """The item that still grows."""

    id: str
    index: int
    start: Part  # what it began with tells its kind
    pieces: list[str] = field(default_factory=list)
    num_chars: int = 0
    logprobs: list[ChatLogprob] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def add(self, text: str) -> None:
        self.pieces.append(text)
        self.num_chars += len(text)

    def continues(self, part: Part) -> bool:
        if isinstance(part, CallArguments):
            return isinstance(self.start, CallStart) and self.start.call == part.call
        return type(part) is type(self.start) and not isinstance(part, CallStart)

    def content(self) -> OutputText | ReasoningText:
        if isinstance(self.start, Reasoning):
            return ReasoningText(self.text)
        return OutputText(self.text, [], list(self.logprobs))

    def item(self, status: Status, *, empty: bool = False) -> Item:
        if isinstance(self.start, CallStart):
            return FunctionCall(self.id, self.start.id, self.start.name, self.text, status)
        if isinstance(self.start, Reasoning):
            return ReasoningItem(self.id, [] if empty else [ReasoningText(self.text)], [], status)
        text = OutputText(self.text, [], list(self.logprobs))
        return Message(self.id, "assistant", [] if empty else [text], status)


class Output:
    """How the parts were cut changes nothing but the deltas. `unique` makes the items' ids."""

    def __init__(self, unique: str) -> None:
        self._unique = unique
        self._done: list[Item] = []
        self._open: _Open | None = None
        self._entries: deque[Entry] = deque()  # of tokens whose text has not come

    def items(self) -> list[Item]:
        """As they are now."""
        return self._done if self._open is None else [*self._done, self._open.item("in_progress")]

    def push(self, parts: list[Part], entries: Iterable[Entry]) -> Iterator[Event]:
        self._entries += entries
        for part in parts:
            if self._open is None or not self._open.continues(part):
                yield from self._close("completed")
                yield from self._begin(part)
            yield from self._grow(part)

    def finish(self, status: Status) -> Iterator[Event]:
        """The end of the answer. One that is complete has a message or a call, if only an empty one."""
        kinds = {type(item) for item in self.items()}
        if status == "completed" and not kinds & {Message, FunctionCall}:
            yield from self._close("completed")
            yield from self._begin(Text(""))
        yield from self._close(status)

    def _begin(self, part: Part) -> Iterator[Event]:
        if isinstance(part, CallArguments):
            raise RuntimeError(f"arguments of call {part.call}, which is not the latest")
        index = len(self._done)
        opened = self._open = _Open(f"{_PREFIXES[type(part)]}_{self._unique}{index:04x}", index, part)
        item = opened.item("in_progress", empty=True)
        yield ItemEvent(type="response.output_item.added", output_index=index, item=item)
        if not isinstance(part, CallStart):
            yield _part_event("response.content_part.added", opened)

    def _grow(self, part: Part) -> Iterator[Event]:
        opened = self._open
        assert opened is not None
        if isinstance(part, CallStart):
            return
        opened.add(part.text)
        if isinstance(part, CallArguments):
            kind = "response.function_call_arguments.delta"
            yield ArgumentsEvent(type=kind, item_id=opened.id, output_index=opened.index, delta=part.text)
        elif isinstance(part, Reasoning):
            yield _text_event("response.reasoning_text.delta", opened, delta=part.text)
        else:
            logprobs = self._take_logprobs(opened)
            yield _text_event("response.output_text.delta", opened, delta=part.text, logprobs=logprobs)

    def _take_logprobs(self, opened: _Open) -> list[ChatLogprob]:
        """Those of the message's tokens that are here now. What stands before it belongs to reasoning and calls."""
        assert isinstance(opened.start, Text)
        start = opened.start.start
        end = start + opened.num_chars
        entries, taken = self._entries, []
        while entries and (entries[0].is_before(start) or entries[0].is_in(start, end)):
            entry = entries.popleft()
            if entry.is_in(start, end):
                taken.append(entry.logprob)
        opened.logprobs += taken
        return taken

    def _close(self, status: Status) -> Iterator[Event]:
        opened, self._open = self._open, None
        if opened is None:
            return
        if isinstance(opened.start, Text):
            self._take_logprobs(opened)
        yield _whole_text(opened)
        if not isinstance(opened.start, CallStart):
            yield _part_event("response.content_part.done", opened)
        item = opened.item(status)
        self._done.append(item)
        yield ItemEvent(type="response.output_item.done", output_index=opened.index, item=item)


def _whole_text(opened: _Open) -> Event:
    text = opened.text
    if isinstance(opened.start, CallStart):
        kind = "response.function_call_arguments.done"
        return ArgumentsEvent(type=kind, item_id=opened.id, output_index=opened.index, arguments=text)
    if isinstance(opened.start, Reasoning):
        return _text_event("response.reasoning_text.done", opened, text=text)
    return _text_event("response.output_text.done", opened, text=text, logprobs=list(opened.logprobs))


def _text_event(
    kind: str,
    opened: _Open,
    delta: str | UnsetType = UNSET,
    text: str | UnsetType = UNSET,
    logprobs: list[ChatLogprob] | UnsetType = UNSET,
) -> TextEvent:
    return TextEvent(
        type=kind,
        item_id=opened.id,
        output_index=opened.index,
        content_index=0,
        delta=delta,
        text=text,
        logprobs=logprobs,
    )


def _part_event(kind: str, opened: _Open) -> PartEvent:
    return PartEvent(type=kind, item_id=opened.id, output_index=opened.index, content_index=0, part=opened.content())
