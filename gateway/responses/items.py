"""The items of a request's input, checked one by one: an error names the item's path."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from msgspec import Raw

from gateway.errors import ApiError
from gateway.openai import encode
from gateway.requests.parse import decode, field_names, invalid, unbuilt
from gateway.responses.store import Store
from gateway.responses.types import (
    CallInput,
    CallOutputInput,
    FunctionCall,
    FunctionCallOutput,
    InputText,
    Item,
    ItemHead,
    Message,
    MessageInput,
    OutputText,
    PartInput,
    ReasoningInput,
    ReasoningItem,
    ReasoningText,
    ReferenceInput,
    Refusal,
)

T = TypeVar("T")
Content = InputText | OutputText | Refusal
HOSTED_ITEMS = frozenset(
    {
        "file_search_call",
        "computer_call",
        "computer_call_output",
        "web_search_call",
        "tool_search_call",
        "tool_search_output",
        "additional_tools",
        "configuration_update",
        "compaction",
        "compaction_trigger",
        "image_generation_call",
        "code_interpreter_call",
        "local_shell_call",
        "local_shell_call_output",
        "shell_call",
        "shell_call_output",
        "apply_patch_call",
        "apply_patch_call_output",
        "mcp_list_tools",
        "mcp_approval_request",
        "mcp_approval_response",
        "mcp_call",
        "custom_tool_call",
        "custom_tool_call_output",
        "program",
        "program_output",
    }
)
_KINDS = ("message", "function_call", "function_call_output", "reasoning", "item_reference")
_PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}
# What our own items carry and mean nothing when they come back.
_HARMLESS = frozenset({"type", "status", "phase", "annotations", "logprobs", "created_by"})


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of one input."""

    max_items: int  # and as many parts of items
    max_bytes: int  # of what references bring in


@dataclass(slots=True)
class ItemReader:
    """Of one request. `unique` makes the ids of items that have none; fields without effect are added to `ignored`."""

    store: Store
    owner: str | None
    unique: str
    ignored: list[str]
    bounds: Bounds
    _found: dict[str, Item] = field(default_factory=dict)  # by the id of a reference
    _num_parts: int = 0
    _num_bytes: int = 0

    def read(self, given: str | Sequence[Raw] | None) -> list[Item]:
        if given is None:
            raise invalid("input", "Missing required field: input.", "missing_required_parameter")
        if isinstance(given, str):
            return [Message(self._new_id("message", 0), "user", [InputText(given)])]
        if len(given) > self.bounds.max_items:
            message = f"input has {len(given)} items; this server takes at most {self.bounds.max_items}."
            raise invalid("input", message, "request_too_long")
        return [self._item(raw, index) for index, raw in enumerate(given)]

    def _item(self, raw: Raw, index: int) -> Item:
        where = f"input[{index}]"
        kind = _kind(decode(raw, ItemHead, where), where)
        if kind == "item_reference":
            return self._referenced(self._decode(raw, ReferenceInput, where).id, where)
        if kind == "message":
            return self._message(raw, index, where)
        if kind == "function_call":
            call = self._decode(raw, CallInput, where)
            return FunctionCall(call.id or self._new_id(kind, index), call.call_id, call.name, call.arguments)
        if kind == "function_call_output":
            result = self._decode(raw, CallOutputInput, where)
            output = result.output if isinstance(result.output, str) else self._input_texts(result.output, where)
            return FunctionCallOutput(result.id or self._new_id(kind, index), result.call_id, output)
        thought = self._decode(raw, ReasoningInput, where)
        texts = [ReasoningText(part.text) for part in thought.content or thought.summary or ()]
        return ReasoningItem(thought.id or self._new_id(kind, index), texts)

    def _message(self, raw: Raw, index: int, where: str) -> Message:
        message = self._decode(raw, MessageInput, where)
        by_assistant = message.role == "assistant"
        content: list[Content]
        if isinstance(message.content, str):
            content = [OutputText(message.content) if by_assistant else InputText(message.content)]
        else:
            content = [
                self._part(part, by_assistant, path) for part, path in self._parts(message.content, f"{where}.content")
            ]
        if not content:
            raise invalid(f"{where}.content", f"{where}.content must not be empty.", "value_out_of_range")
        return Message(message.id or self._new_id("message", index), message.role, content)

    def _part(self, raw: Raw, by_assistant: bool, where: str) -> Content:
        part = self._decode(raw, PartInput, where)
        if part.type == "refusal" and by_assistant:
            return Refusal(_required(part.refusal, f"{where}.refusal"))
        if part.type not in ("input_text", "output_text", "text"):
            message = f"{where}.type '{part.type[:40]}' is not supported: this server's model takes text only."
            raise invalid(f"{where}.type", message, "unsupported_content")
        text = _required(part.text, f"{where}.text")
        return OutputText(text) if by_assistant else InputText(text)

    def _input_texts(self, raws: Sequence[Raw], where: str) -> list[InputText]:
        parts = [self._part(part, False, path) for part, path in self._parts(raws, f"{where}.output")]
        return [part for part in parts if isinstance(part, InputText)]

    def _referenced(self, item_id: str, where: str) -> Item:
        if item_id not in self._found:
            record = self.store.with_item(item_id, self.owner)
            if record is not None:
                self._found |= {item.id: item for item in record.items}
        if item_id not in self._found:
            message = f"{where}.id: there is no stored item '{item_id[:100]}'."
            raise ApiError(404, message, param=f"{where}.id", code="item_not_found")
        item = self._found[item_id]
        self._num_bytes += len(encode(item))
        if self._num_bytes > self.bounds.max_bytes:
            message = f"What input refers to has more than {self.bounds.max_bytes} bytes in all."
            raise invalid("input", message, "request_too_long")
        return item

    def _parts(self, raws: Sequence[Raw], where: str) -> Iterator[tuple[Raw, str]]:
        self._num_parts += len(raws)
        if self._num_parts > self.bounds.max_items:
            message = f"The items of input have more than {self.bounds.max_items} parts in all."
            raise invalid("input", message, "request_too_long")
        return ((raw, f"{where}[{index}]") for index, raw in enumerate(raws))

    def _decode(self, raw: Raw, kind: type[T], where: str) -> T:
        known = field_names(kind) | _HARMLESS
        given = decode(raw, dict[str, Any], where)
        self.ignored += [f"{where}.{name}" for name, value in given.items() if name not in known and value is not None]
        return decode(raw, kind, where)

    def _new_id(self, kind: str, index: int) -> str:
        return f"{_PREFIXES[kind]}_{self.unique}i{index:04x}"


def _kind(head: ItemHead, where: str) -> str:
    kind = head.type or ("message" if head.role is not None else "item_reference")
    if kind in HOSTED_ITEMS:
        raise unbuilt(f"{where}.type", f"{where}: items of type '{kind}' are not supported by this server.")
    if kind not in _KINDS:
        message = f"{where}.type must be one of {', '.join(_KINDS)}; '{kind[:40]}' is not supported."
        raise invalid(f"{where}.type", message, "invalid_value")
    return kind


def _required(value: str | None, where: str) -> str:
    if value is None:
        raise invalid(where, f"Missing required field: {where}.", "missing_required_parameter")
    return value


def check_call_outputs(history: Iterable[Item], items: Sequence[Item]) -> None:
    """Each output belongs to a call before it."""
    calls = {item.call_id for item in history if isinstance(item, FunctionCall)}
    for index, item in enumerate(items):
        if isinstance(item, FunctionCall):
            calls.add(item.call_id)
        elif isinstance(item, FunctionCallOutput) and item.call_id not in calls:
            where = f"input[{index}].call_id"
            raise invalid(where, f"{where}: there is no call '{item.call_id[:100]}' before it.", "invalid_value")
