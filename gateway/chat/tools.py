"""Tools in a conversation: as chat templates expect them, or as plain text for templates that know none."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gateway.tools.base import Call, Tool, ToolFormat

Message = Mapping[str, Any]


def knows_tools(template_source: str) -> bool:
    """Whether a chat template puts tools into the prompt."""
    return "tools" in template_source


def template_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as templates read them: arguments as objects, no content as "", results with their function's name."""
    names = _names_by_id(messages)
    return [_for_template(message, names) for message in messages]


def fallback(messages: Sequence[Message], tools: Sequence[Tool], format: ToolFormat) -> list[dict[str, Any]]:
    """The same conversation without tool messages, and with instructions on how to call `tools`, if there are any."""
    plain: list[dict[str, Any]] = []
    for message in messages:
        if message.get("role") == "tool":
            _add_result(plain, _text(message.get("content")))
        elif message.get("tool_calls"):
            plain.append(_called(message, format))
        else:
            plain.append(dict(message))
    return _instructed(plain, _instructions(tools, format)) if tools else plain


def _for_template(message: Message, names: Mapping[str, str]) -> dict[str, Any]:
    plain = dict(message)
    if plain.get("content") is None:
        plain["content"] = ""
    if plain.get("tool_calls"):
        plain["tool_calls"] = [_with_parsed_arguments(call) for call in plain["tool_calls"]]
    else:
        plain.pop("tool_calls", None)
    name = names.get(str(plain.get("tool_call_id")))
    if plain.get("role") == "tool" and not plain.get("name") and name:
        plain["name"] = name
    return plain


def _with_parsed_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    function = dict(call["function"])
    function["arguments"] = _parsed(function.get("arguments") or "{}")
    return {**call, "function": function}


def _parsed(arguments: Any) -> Any:
    """The object that they are, or what the model wrote instead."""
    try:
        parsed = json.loads(arguments) if isinstance(arguments, str) else arguments
    except (ValueError, RecursionError):
        return arguments
    return parsed if isinstance(parsed, dict) else arguments


def _names_by_id(messages: Sequence[Message]) -> dict[str, str]:
    calls = (call for message in messages for call in message.get("tool_calls") or ())
    return {call["id"]: call["function"]["name"] for call in calls if "id" in call}


def _called(message: Message, format: ToolFormat) -> dict[str, Any]:
    functions = [call["function"] for call in message["tool_calls"]]
    calls = format.render([Call(function["name"], function.get("arguments") or "{}") for function in functions])
    text = _text(message.get("content"))
    plain = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**plain, "content": f"{text}\n{calls}" if text else calls}


def _add_result(plain: list[dict[str, Any]], result: str) -> None:
    """Results in a row are one message: many templates want users and assistants to take turns."""
    block = f"<tool_response>\n{result}\n</tool_response>"
    if plain and plain[-1].get("role") == "user" and str(plain[-1].get("content")).startswith("<tool_response>"):
        plain[-1]["content"] += f"\n{block}"
    else:
        plain.append({"role": "user", "content": block})


def _instructed(messages: list[dict[str, Any]], instructions: str) -> list[dict[str, Any]]:
    if messages and messages[0].get("role") in ("system", "developer"):
        system = _text(messages[0].get("content"))
        content = f"{system}\n\n{instructions}" if system else instructions
        return [{**messages[0], "content": content}, *messages[1:]]
    return [{"role": "system", "content": instructions}, *messages]


def _instructions(tools: Iterable[Tool], format: ToolFormat) -> str:
    functions = "\n".join(json.dumps(_description(tool), ensure_ascii=False) for tool in tools)
    example = format.render([Call("the_name", '{"a_parameter": "its value"}')])
    return (
        f"You can call these functions:\n{functions}\n\n"
        f"To call one, write only this, with its name and its parameters:\n{example}\n\n"
        "The result comes in the next message, inside <tool_response>. If no function helps, answer in plain words."
    )


def _description(tool: Tool) -> dict[str, Any]:
    described = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {key: value for key, value in described.items() if value}


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(part.get("text", "") for part in content if isinstance(part, dict))
    return "" if content is None else str(content)
