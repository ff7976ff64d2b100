"""From Anthropic's messages, made of blocks, to a chat's: calls and their results are messages' fields there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from msgspec import Raw

from gateway.messages.types import (
    BlockHead,
    InputMessage,
    TextInput,
    ThinkingInput,
    ToolResultInput,
    ToolUseInput,
)
from gateway.requests.parse import decode, field_names, invalid, unbuilt

T = TypeVar("T")
Role = Literal["user", "assistant", "system", "tool"]
_MEDIA = ("image", "document", "container_upload")


@dataclass(slots=True)
class Turn:
    """A chat's message, and where it comes from."""

    role: Role
    origin: str
    texts: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    answers: str | None = None  # the call whose result this is

    def message(self) -> dict[str, Any]:
        message: dict[str, Any] = {"role": self.role}
        message["content"] = ("" if self.role == "assistant" else "\n").join(self.texts)
        if self.reasoning:
            message["reasoning_content"] = "\n".join(self.reasoning)
        if self.calls:
            message["tool_calls"] = self.calls
        if self.answers is not None:
            message["tool_call_id"] = self.answers
        return message


def read(raw: Raw, kind: type[T], where: str, ignored: list[str]) -> T:
    """Adds what `kind` does not name to `ignored`."""
    value = decode(raw, kind, where)
    tell_unknown(decode(raw, dict[str, Raw], where), kind, where, ignored)
    return value


def tell_unknown(fields: Mapping[str, Raw], kind: type[Any], where: str, ignored: list[str]) -> None:
    known = field_names(kind)
    ignored += [f"{where}.{name}" for name, raw in fields.items() if name not in known and bytes(raw) != b"null"]


def chat_turns(system: str | list[Raw] | None, messages: Sequence[Raw], ignored: list[str]) -> list[Turn]:
    """Neighbours of one role are one turn, as Anthropic has it."""
    if not messages:
        raise invalid("messages", "messages must hold at least one message.", "value_out_of_range")
    turns: list[Turn] = []
    if system:
        turns.append(Turn("system", "system", _texts(system, "system", ignored)))
    call_ids: set[str] = set()
    for index, raw in enumerate(messages):
        for turn in _Reader(f"messages[{index}]", ignored, call_ids).turns(raw):
            _add(turn, turns)
    return turns


def _add(turn: Turn, turns: list[Turn]) -> None:
    if not turns or turn.role != turns[-1].role or turn.role not in ("user", "assistant"):
        return turns.append(turn)
    last = turns[-1]
    last.texts += turn.texts
    last.reasoning += turn.reasoning
    last.calls += turn.calls
    return None


class _Reader:
    """Of one message."""

    def __init__(self, where: str, ignored: list[str], call_ids: set[str]) -> None:
        self._where = where
        self._ignored = ignored
        self._call_ids = call_ids  # of all calls so far

    def turns(self, raw: Raw) -> list[Turn]:
        message = read(raw, InputMessage, self._where, self._ignored)
        if message.role == "system":
            return [Turn("system", self._where, _texts(message.content, f"{self._where}.content", self._ignored))]
        if isinstance(message.content, str):
            return [Turn(message.role, f"{self._where}.content", [message.content])]
        blocks = list(_blocks(message.content, f"{self._where}.content"))
        if message.role == "assistant":
            return [self._assistant(blocks)]
        return self._user(blocks)

    def _user(self, blocks: list[tuple[str, str, Raw]]) -> list[Turn]:
        turns: list[Turn] = []
        for kind, where, raw in blocks:
            if kind == "text":
                turns.append(Turn("user", where, [read(raw, TextInput, where, self._ignored).text]))
            elif kind == "tool_result":
                turns.append(self._result(read(raw, ToolResultInput, where, self._ignored), where))
            else:
                raise _refused(kind, where)
        return turns

    def _result(self, result: ToolResultInput, where: str) -> Turn:
        if result.tool_use_id not in self._call_ids:
            name = f"{where}.tool_use_id"
            raise invalid(name, f"{name}: there is no tool_use block with this id before.", "invalid_value")
        texts = _texts(result.content or "", f"{where}.content", self._ignored)
        if result.is_error:
            texts = ["Error: " + "\n".join(texts)]
        return Turn("tool", where, texts, answers=result.tool_use_id)

    def _assistant(self, blocks: list[tuple[str, str, Raw]]) -> Turn:
        turn = Turn("assistant", f"{self._where}.content")
        for kind, where, raw in blocks:
            if kind == "text":
                turn.texts.append(read(raw, TextInput, where, self._ignored).text)
            elif kind == "thinking":
                turn.reasoning.append(read(raw, ThinkingInput, where, self._ignored).thinking)
            elif kind == "redacted_thinking":
                self._ignored.append(where)
            elif kind == "tool_use":
                turn.calls.append(self._call(read(raw, ToolUseInput, where, self._ignored)))
            else:
                raise _refused(kind, where)
        return turn

    def _call(self, call: ToolUseInput) -> dict[str, Any]:
        self._call_ids.add(call.id)
        arguments = json.dumps(call.input, ensure_ascii=False)
        return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _blocks(content: Sequence[Raw], where: str) -> Iterator[tuple[str, str, Raw]]:
    if not content:
        raise invalid(where, f"{where} must be a string or a non-empty array of blocks.", "value_out_of_range")
    for index, raw in enumerate(content):
        at = f"{where}[{index}]"
        yield decode(raw, BlockHead, at).type, at, raw


def _texts(content: str | list[Raw], where: str, ignored: list[str]) -> list[str]:
    """Of what takes text only: the system prompt and results."""
    if isinstance(content, str):
        return [content]
    texts = []
    for kind, at, raw in _blocks(content, where):
        if kind != "text":
            raise _refused(kind, at)
        texts.append(read(raw, TextInput, at, ignored).text)
    return texts


def _refused(kind: str, where: str) -> Exception:
    name = f"{where}.type"
    if kind in _MEDIA:
        return invalid(
            name, f"{name} '{kind}' is not supported: this server's model takes text only.", "unsupported_content"
        )
    if kind in ("text", "thinking", "redacted_thinking", "tool_use", "tool_result"):
        return invalid(name, f"{name} '{kind}' cannot stand here.", "invalid_value")
    return unbuilt(name, f"{name} '{kind[:40]}' is not supported by this server.")
