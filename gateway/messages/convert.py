"""From a Messages request to a chat request, and the names of its faults back."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from msgspec import Raw

from gateway.errors import ApiError
from gateway.messages.turns import Turn, chat_turns, read, tell_unknown
from gateway.messages.types import (
    Conversation,
    CustomTool,
    MessagesRequest,
    OutputConfig,
    OutputFormat,
    Thinking,
    ToolChoice,
)
from gateway.model.served import ServedModel
from gateway.openai import ChatRequest, encode
from gateway.requests.parse import FORMS, LENGTHS, decode, invalid, unbuilt

_SWITCHES = ("enable_thinking", "thinking")  # by which templates turn reasoning on and off
_NESTED = {"tool_choice": ToolChoice, "thinking": Thinking, "output_config": OutputConfig}
MISNAMED: Mapping[str, str] = {  # other APIs' fields, and what to use instead
    **FORMS,
    **dict.fromkeys((*LENGTHS, "max_completion_tokens", "max_output_tokens"), "max_tokens"),
    "instructions": "system",
    "input": "messages",
    "stop": "stop_sequences",
    "response_format": "output_config.format",
    **{f"guided_{kind}": f"structured_outputs.{kind}" for kind in ("json", "regex", "choice", "grammar")},
}
_CHOICES: Mapping[str, str] = {"auto": "auto", "any": "required", "none": "none"}
_NAMES = (  # a chat's fields, and what they are called here
    (r"tools\[(\d+)\]\.function\.parameters", r"tools[\1].input_schema"),
    (r"tools\[(\d+)\]\.function", r"tools[\1]"),
    (r"tool_choice\.function", "tool_choice"),
    (r"response_format\.json_schema", "output_config.format"),
    (r"response_format", "output_config.format"),
    (r"continue_final_message", "messages"),
)


@dataclass(frozen=True, slots=True)
class Translated:
    request: ChatRequest
    turns: Sequence[Turn]

    def renamed(self, error: ApiError) -> ApiError:
        """The same error by the names of the request as it came."""
        if error.param is None:
            return error
        name = self._name(error.param)
        told = re.sub(rf"(?<![\w.]){re.escape(error.param)}(?!\w)", lambda match: name, error.message)
        return ApiError(error.status, told, type=error.type, param=name, code=error.code, headers=error.headers)

    def _name(self, param: str) -> str:
        if message := re.match(r"messages\[(\d+)\]", param):
            return self.turns[int(message[1])].origin
        for pattern, name in _NAMES:
            renamed, found = re.subn("^" + pattern, name, param)
            if found:
                return renamed
        return param


def translate(request: Conversation, fields: Mapping[str, Raw], model: ServedModel, ignored: list[str]) -> Translated:
    """fields: the request as it came. Adds what has no effect to `ignored`. Raises ApiError."""
    _refuse_unbuilt(request)
    for name, kind in _NESTED.items():
        if getattr(request, name) is not None:
            tell_unknown(decode(fields[name], dict[str, Raw], name), kind, name, ignored)
    if request.speed == "fast":
        ignored.append("speed")
    turns = chat_turns(request.system, request.messages, ignored)
    choice = request.tool_choice
    chat = ChatRequest(
        model=request.model,
        messages=[Raw(encode(turn.message())) for turn in turns],
        tools=_tools(request.tools, ignored),
        tool_choice=_tool_choice(choice),
        parallel_tool_calls=False if choice and choice.disable_parallel_tool_use else None,
        continue_final_message=_continues(turns) or None,
        response_format=_response_format(request),
        structured_outputs=request.structured_outputs,
        chat_template_kwargs=_template_variables(request, model, ignored) or None,
    )
    if isinstance(request, MessagesRequest):
        _add_sampling(chat, request)
    return Translated(chat, turns)


def _refuse_unbuilt(request: Conversation) -> None:
    for name in ("mcp_servers", "container"):
        if getattr(request, name, None) not in (None, []):
            raise unbuilt(name, f"{name} is not supported by this server.")


def _add_sampling(chat: ChatRequest, request: MessagesRequest) -> None:
    """Not max_tokens: an answer may be shorter than that where the context ends. Nor stop_sequences: there may be more
    of them than in a chat."""
    if request.max_tokens < 1:
        message = f"max_tokens must be at least 1, but is {request.max_tokens}."
        raise invalid("max_tokens", message, "value_out_of_range")
    if request.temperature is not None and not 0 <= request.temperature <= 1:
        message = f"temperature must be between 0 and 1, but is {request.temperature}."
        raise invalid("temperature", message, "value_out_of_range")
    chat.temperature, chat.top_p, chat.top_k = request.temperature, request.top_p, request.top_k
    chat.stream = request.stream


def _continues(turns: Sequence[Turn]) -> bool:
    """Whether the answer goes on where the last message ends."""
    last = turns[-1]
    if last.role == "assistant" and last.calls:
        message = "messages: the last message has tool_use blocks, but no message with their results follows."
        raise invalid("messages", message, "invalid_value")
    return last.role == "assistant"


# tools


def _tools(raws: Sequence[Raw] | None, ignored: list[str]) -> list[Raw] | None:
    return [_tool(raw, f"tools[{index}]", ignored) for index, raw in enumerate(raws)] if raws else None


def _tool(raw: Raw, where: str, ignored: list[str]) -> Raw:
    kind = decode(raw, dict[str, Any], where).get("type")
    if kind not in (None, "custom"):
        name = f"{where}.type"
        raise unbuilt(name, f"{name} '{str(kind)[:40]}' is not supported by this server: only custom tools are.")
    tool = read(raw, CustomTool, where, ignored)
    no_effect = {
        "eager_input_streaming": tool.eager_input_streaming is False,  # all input is streamed as it comes
        "defer_loading": bool(tool.defer_loading),
        "allowed_callers": tool.allowed_callers not in (None, ["direct"]),
    }
    ignored += [f"{where}.{name}" for name, asked in no_effect.items() if asked]
    function: dict[str, Any] = {"name": tool.name, "parameters": tool.input_schema, "strict": bool(tool.strict)}
    if tool.description is not None:
        function["description"] = tool.description
    return Raw(encode({"type": "function", "function": function}))


def _tool_choice(choice: ToolChoice | None) -> Any:
    if choice is None:
        return None
    if choice.type != "tool":
        return _CHOICES[choice.type]
    if choice.name is None:
        raise invalid("tool_choice.name", "Missing required field: tool_choice.name.", "missing_required_parameter")
    return {"type": "function", "function": {"name": choice.name}}


# the form of the answer


def _response_format(request: Conversation) -> dict[str, Any] | None:
    config: OutputFormat | None = request.output_config.format if request.output_config else None
    if config and request.output_format:
        message = "output_format and output_config.format are the same; give one of them."
        raise invalid("output_format", message, "conflicting_parameters")
    format = config or request.output_format
    if format is None:
        return None
    return {"type": "json_schema", "json_schema": {"name": "output", "schema": format.schema, "strict": True}}


def _template_variables(request: Conversation, model: ServedModel, ignored: list[str]) -> dict[str, Any]:
    """Thinking and effort, as far as the model's template can be told of them."""
    read_by_template = model.chat_template.variables if model.chat_template else frozenset()
    variables: dict[str, Any] = {}
    effort = request.output_config.effort if request.output_config else None
    if effort is not None and "reasoning_effort" in read_by_template:
        variables["reasoning_effort"] = effort
    elif effort is not None:
        ignored.append("output_config.effort")
    if request.thinking is not None:
        thinks = _thinks(request.thinking, ignored)
        switches = [name for name in _SWITCHES if name in read_by_template]
        variables |= dict.fromkeys(switches, thinks)
        if not switches and thinks != (model.reasoning is not None):
            ignored.append("thinking")
    return variables


def _thinks(thinking: Thinking, ignored: list[str]) -> bool:
    if thinking.type == "between_tools":
        raise unbuilt("thinking.type", "thinking.type 'between_tools' is not supported by this server.")
    if thinking.type not in ("enabled", "disabled", "adaptive"):
        message = "thinking.type must be one of enabled, disabled, adaptive."
        raise invalid("thinking.type", message, "invalid_value")
    if thinking.budget_tokens is not None:
        ignored.append("thinking.budget_tokens")
    return thinking.type != "disabled"
