"""The messages and tools of a chat request, checked one by one: an error names the element's path."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from msgspec import Raw

from gateway.openai import (
    FunctionDefinition,
    Message,
    MessageToolCall,
    TextPart,
    ToolCallFunction,
    ToolDefinition,
)
from gateway.requests.parse import decode, field_names, invalid, others, unbuilt
from gateway.tools.base import Tool

MAX_TOOLS = 128
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
_FUNCTION_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_OF_ROLE = {"refusal": "assistant", "reasoning_content": "assistant", "reasoning": "assistant", "tool_call_id": "tool"}
_NOTHING = (b"null", b"[]", b"{}")

Turn = dict[str, Any]  # a message as chat templates take it


def chat_messages(raws: Sequence[Raw], ignored: list[str] | None = None) -> list[Turn]:
    """Adds fields of messages that have no effect to `ignored`."""
    if not raws:
        raise invalid("messages", "messages must hold at least one message.", "value_out_of_range")
    turns: list[Turn] = []
    called: set[str] = set()
    for index, raw in enumerate(raws):
        where = f"messages[{index}]"
        message = decode(raw, Message, where)
        turn = _chat_message(message, where)
        turns.append(turn)
        called.update(call["id"] for call in turn.get("tool_calls", ()))
        if turn["role"] == "tool" and turn["tool_call_id"] not in called:
            name = f"{where}.tool_call_id"
            raise invalid(name, f"{name} names no call of a message before it.", "invalid_value")
        if ignored is not None:
            ignored += _unknown(raw, Message, where) + _without_effect(message, where)
    return turns


def _unknown(raw: Raw, kind: type[Any], where: str) -> list[str]:
    """Fields that ask for something, and that nobody here knows."""
    fields = decode(raw, dict[str, Raw], where)
    unknown = sorted(fields.keys() - field_names(kind))
    return [f"{where}.{name}" for name in unknown if bytes(fields[name]) not in _NOTHING]


def _without_effect(message: Message, where: str) -> list[str]:
    role, parts = ROLES[message.role], message.content if isinstance(message.content, list) else []
    names = [f"{where}.{name}" for name, of in _OF_ROLE.items() if getattr(message, name) and role != of]
    if message.refusal and message.content and role == "assistant":
        names.append(f"{where}.refusal")
    for index, part in enumerate(parts):
        names += _unknown(part, TextPart, f"{where}.content[{index}]")
    for index, call in enumerate(message.tool_calls or []):
        at = f"{where}.tool_calls[{index}]"
        names += _unknown(call, MessageToolCall, at)
        names += _unknown(decode(call, dict[str, Raw])["function"], ToolCallFunction, f"{at}.function")
    return names


def reasoning_fields(raws: Sequence[Raw]) -> list[str]:
    """Where checked messages of the assistant bring reasoning."""
    found = []
    for index, raw in enumerate(raws):
        message = decode(raw, Message) if b"reasoning" in bytes(raw) else None
        if message is not None and message.role == "assistant":
            names = ("reasoning_content", "reasoning")
            found += [f"messages[{index}].{name}" for name in names if getattr(message, name)]
    return found


def _chat_message(message: Message, where: str) -> Turn:
    role = ROLES.get(message.role)
    if role is None:
        text = f"{where}.role must be one of {', '.join(ROLES)}; '{message.role[:40]}' is not supported."
        raise invalid(f"{where}.role", text, "invalid_value")
    for name in ("function_call", "audio"):
        if getattr(message, name) is not None:
            raise unbuilt(f"{where}.{name}", f"{where}.{name} is not supported by this server.")
    turn: Turn = {"role": role, "content": _content(message, where)}
    if message.name is not None:
        turn["name"] = message.name
    if role == "assistant":
        _add_assistant_fields(turn, message, where)
    elif message.tool_calls:
        raise invalid(f"{where}.tool_calls", f"{where}.tool_calls belongs to messages of the assistant.")
    if role == "tool":
        if message.tool_call_id is None:
            name = f"{where}.tool_call_id"
            raise invalid(name, f"Missing required field: {name}.", "missing_required_parameter")
        turn["tool_call_id"] = message.tool_call_id
    return turn


def _add_assistant_fields(turn: Turn, message: Message, where: str) -> None:
    reasoning = message.reasoning_content or message.reasoning
    if reasoning:
        turn["reasoning_content"] = reasoning
    if message.tool_calls:
        calls = enumerate(message.tool_calls)
        turn["tool_calls"] = [_tool_call(raw, f"{where}.tool_calls[{index}]") for index, raw in calls]


def _tool_call(raw: Raw, where: str) -> dict[str, Any]:
    call = decode(raw, MessageToolCall, where)
    function = {"name": call.function.name, "arguments": call.function.arguments}
    return {"id": call.id, "type": call.type, "function": function}


def _content(message: Message, where: str) -> str:
    content, where = message.content, f"{where}.content"
    if isinstance(content, str):
        return content
    if content:
        return "\n".join(_part_text(part, f"{where}[{index}]") for index, part in enumerate(content))
    if message.role == "assistant" and (message.tool_calls or message.refusal):
        return message.refusal or ""
    if message.role == "tool" and content == []:
        return ""
    raise invalid(where, f"{where} must be a string or a non-empty array of text parts.", "invalid_type")


def _part_text(raw: Raw, where: str) -> str:
    part = decode(raw, TextPart, where)
    text = part.refusal if part.type == "refusal" else part.text
    if part.type not in ("text", "refusal"):
        message = f"{where}.type '{part.type[:40]}' is not supported: this server's model takes text only."
        raise invalid(f"{where}.type", message, "unsupported_content")
    if text is None:
        raise invalid(
            f"{where}.{part.type}", f"Missing required field: {where}.{part.type}.", "missing_required_parameter"
        )
    return text


def text_of(turns: Iterable[Turn], functions: Iterable[Tool]) -> list[str]:
    """What templates print, for estimates."""
    texts = []
    for turn in turns:
        texts.append(turn["content"])
        for call in turn.get("tool_calls", ()):
            texts += [call["function"]["name"], call["function"]["arguments"]]
    for function in functions:
        texts += [function.name, function.description, msgspec.json.encode(function.parameters).decode()]
    return texts


def text_perhaps_of(turns: Iterable[Turn]) -> list[str]:
    """What many templates leave out."""
    return [turn[name] for turn in turns for name in ("name", "reasoning_content") if name in turn]


# tools


def tool_functions(raws: Sequence[Raw] | None, ignored: list[str] | None = None) -> list[Tool]:
    """Adds fields of tools that have no effect to `ignored`."""
    if not raws:
        return []
    if len(raws) > MAX_TOOLS:
        raise invalid("tools", f"tools holds at most {MAX_TOOLS} tools, but got {len(raws)}.", "value_out_of_range")
    functions = [_tool_function(raw, f"tools[{index}]") for index, raw in enumerate(raws)]
    seen: set[str] = set()
    for index, function in enumerate(functions):
        if function.name in seen:
            where = f"tools[{index}].function.name"
            raise invalid(where, f"{where}: there is another tool with the name '{function.name}'.", "invalid_value")
        seen.add(function.name)
    if ignored is not None:
        for index, raw in enumerate(raws):
            ignored += _unknown(raw, ToolDefinition, f"tools[{index}]")
            function_raw = decode(raw, dict[str, Raw])["function"]
            ignored += _unknown(function_raw, FunctionDefinition, f"tools[{index}].function")
    return functions


def _tool_function(raw: Raw, where: str) -> Tool:
    tool = decode(raw, ToolDefinition, where)
    if tool.type != "function":
        message = f"{where}.type '{tool.type[:40]}' is not supported: only functions are."
        raise unbuilt(f"{where}.type", message) if tool.type == "custom" else invalid(f"{where}.type", message)
    if tool.function is None:
        name = f"{where}.function"
        raise invalid(name, f"Missing required field: {name}.", "missing_required_parameter")
    if not _FUNCTION_NAME.fullmatch(tool.function.name):
        name = f"{where}.function.name"
        message = f"{name} must be 1 to 64 letters, digits, dots, underscores or dashes."
        raise invalid(name, message, "invalid_value")
    function = tool.function
    return Tool(function.name, function.description or "", function.parameters, bool(function.strict))


def tool_document(function: Tool) -> dict[str, Any]:
    """A tool as chat templates print it."""
    parameters = function.parameters or {"type": "object", "properties": {}}
    document = {"name": function.name, "description": function.description, "parameters": parameters}
    return {"type": "function", "function": document}


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """mode none: tools stay out of the prompt, and text that looks like a call is text."""

    mode: Literal["none", "auto", "required", "named"] = "none"
    functions: Sequence[Tool] = ()  # that may be called
    parallel: bool = True

    @property
    def is_forced(self) -> bool:
        return self.mode in ("required", "named")


def tool_choice(value: Any, functions: list[Tool], parallel: bool | None) -> ToolChoice:
    where = "tool_choice"
    if value is None:
        value = "auto" if functions else "none"
    if isinstance(value, str):
        if value not in ("none", "auto", "required"):
            message = f"{where} must be none, auto, required, or an object that names a function."
            raise invalid(where, message, "invalid_value")
        mode: Any = value
        allowed = functions
    elif isinstance(value, dict) and value.get("type") == "allowed_tools":
        mode, allowed = _allowed_tools(value.get("allowed_tools"), functions, f"{where}.allowed_tools")
    elif isinstance(value, dict) and value.get("type") == "custom":
        raise unbuilt(f"{where}.type", f"{where}.type 'custom' is not supported by this server.")
    elif isinstance(value, dict):
        mode, allowed = "named", [_named_function(value, functions, where)]
    else:
        raise invalid(where, f"Invalid value for {where}: expected a string or an object.", "invalid_type")
    if mode != "none" and not functions:
        if mode == "auto":
            return ToolChoice()
        raise invalid(where, f"{where} asks for a call, but there are no tools.", "invalid_value")
    return ToolChoice(mode, allowed if mode != "none" else (), parallel is not False and mode != "named")


def unknown_in_choice(value: Any) -> list[str]:
    """Names without effect in a checked tool_choice."""
    where = "tool_choice"
    if not isinstance(value, dict):
        return []
    if value.get("type") != "allowed_tools":
        return _unknown_in_named(value, where)
    allowed, inside = value["allowed_tools"], f"{where}.allowed_tools"
    names = others(value, ("type", "allowed_tools"), where) + others(allowed, ("mode", "tools"), inside)
    for index, tool in enumerate(allowed["tools"]):
        names += _unknown_in_named(tool, f"{inside}.tools[{index}]")
    return names


def _unknown_in_named(value: dict[str, Any], where: str) -> list[str]:
    return others(value, ("type", "function"), where) + others(value["function"], ("name",), f"{where}.function")


def _named_function(value: dict[str, Any], functions: list[Tool], where: str) -> Tool:
    function = value.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    if value.get("type", "function") != "function" or not isinstance(name, str):
        message = f'{where} must be of the form {{"type": "function", "function": {{"name": ...}}}}.'
        raise invalid(where, message, "invalid_value")
    return _find(name, functions, f"{where}.function.name")


def _find(name: str, functions: list[Tool], where: str) -> Tool:
    found = next((function for function in functions if function.name == name), None)
    if found is None:
        raise invalid(where, f"{where}: there is no tool '{name[:64]}'.", "invalid_value")
    return found


def _allowed_tools(value: Any, functions: list[Tool], where: str) -> tuple[str, list[Tool]]:
    tools = value.get("tools") if isinstance(value, dict) else None
    if not isinstance(value, dict) or value.get("mode") not in ("auto", "required") or not isinstance(tools, list):
        raise invalid(where, f"{where} must hold a mode, auto or required, and tools.", "invalid_value")
    named = [
        _named_function(tool if isinstance(tool, dict) else {}, functions, f"{where}.tools[{index}]")
        for index, tool in enumerate(tools)
    ]
    if not named:
        raise invalid(f"{where}.tools", f"{where}.tools must not be empty.", "value_out_of_range")
    return value["mode"], named
