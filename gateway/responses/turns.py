"""From items to the messages of a chat: what an assistant thought, said and called in a row is one message."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from gateway.responses.types import (
    FunctionCall,
    FunctionCallOutput,
    InputText,
    Item,
    Message,
    OutputText,
    ReasoningItem,
)


@dataclass(slots=True)
class Sourced:
    """A message, and where in the request it came from."""

    message: dict[str, Any]
    source: str

    @property
    def role(self) -> str:
        return str(self.message["role"])


@dataclass(slots=True)
class _Assistant:
    """A message of the assistant that may still grow."""

    source: str
    thoughts: list[str] = field(default_factory=list)
    text: str | None = None
    calls: list[dict[str, Any]] = field(default_factory=list)

    def takes(self, item: Item) -> bool:
        if isinstance(item, FunctionCall):
            return True
        return self.text is None and not self.calls

    def add(self, item: Item) -> None:
        if isinstance(item, ReasoningItem):
            self.thoughts += [part.text for part in item.content]
        elif isinstance(item, Message):
            self.text = text_of(item)
        elif isinstance(item, FunctionCall):
            function = {"name": item.name, "arguments": item.arguments}
            self.calls.append({"id": item.call_id, "type": "function", "function": function})

    def sourced(self) -> Iterator[Sourced]:
        """Reasoning that nothing follows is not worth a message."""
        if self.text is None and not self.calls:
            return
        message: dict[str, Any] = {"role": "assistant", "content": self.text}
        if self.thoughts:
            message["reasoning_content"] = "\n".join(self.thoughts)
        if self.calls:
            message["tool_calls"] = self.calls
        yield Sourced(message, self.source)


def messages(items: Iterable[tuple[Item, str]]) -> Iterator[Sourced]:
    """Each item with its source."""
    assistant: _Assistant | None = None
    for item, source in items:
        if not _is_assistants(item):
            if assistant is not None:
                yield from assistant.sourced()
                assistant = None
            yield Sourced(_message(item), source)
            continue
        if assistant is not None and not assistant.takes(item):
            yield from assistant.sourced()
            assistant = None
        assistant = assistant or _Assistant(source)
        assistant.add(item)
    if assistant is not None:
        yield from assistant.sourced()


def _is_assistants(item: Item) -> bool:
    return isinstance(item, ReasoningItem | FunctionCall) or (isinstance(item, Message) and item.role == "assistant")


def _message(item: Item) -> dict[str, Any]:
    if isinstance(item, FunctionCallOutput):
        output = item.output if isinstance(item.output, str) else "\n".join(part.text for part in item.output)
        return {"role": "tool", "tool_call_id": item.call_id, "content": output}
    assert isinstance(item, Message)
    return {"role": item.role, "content": text_of(item)}


def text_of(message: Message) -> str:
    parts = message.content
    return "\n".join(part.text if isinstance(part, InputText | OutputText) else part.refusal for part in parts)
