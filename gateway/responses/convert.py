"""From a request to the chat that answers it. What is known and not built is refused by its name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from msgspec import Raw

from gateway.errors import ApiError
from gateway.openai import ChatRequest, StreamOptions, encode
from gateway.requests.parse import decode, invalid, unbuilt
from gateway.responses.turns import Sourced
from gateway.responses.types import FunctionTool, ItemHead, ResponseRequest

LOGPROBS = "message.output_text.logprobs"
ENCRYPTED = "reasoning.encrypted_content"  # our reasoning is in the open, and may be sent back as it is
INCLUDES = (
    LOGPROBS,
    ENCRYPTED,
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
)
HOSTED_TOOLS = frozenset(
    {
        "apply_patch",
        "code_interpreter",
        "computer",
        "computer_use_preview",
        "custom",
        "file_search",
        "image_generation",
        "local_shell",
        "mcp",
        "namespace",
        "programmatic_tool_calling",
        "shell",
        "tool_search",
        "web_search",
        "web_search_2025_08_26",
        "web_search_preview",
        "web_search_preview_2025_03_11",
    }
)
_NOT_BUILT = ("conversation", "prompt", "context_management", "moderation", "access_programs")
_SHARED_WITH_CHAT = (
    *("model", "temperature", "top_p", "parallel_tool_calls", "stream", "stop", "seed", "presence_penalty"),
    *("frequency_penalty", "logit_bias", "top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos"),
    *("stop_token_ids", "bad_words", "cache_salt", "priority", "structured_outputs", "chat_template_kwargs"),
)
_OF_TOOL = {"type", *FunctionTool.__struct_fields__}
_MAX_METADATA, _MAX_METADATA_KEY, _MAX_METADATA_VALUE = 16, 64, 512
_NAMES = (
    ("max_completion_tokens", "max_output_tokens"),
    ("response_format.json_schema", "text.format"),
    ("response_format", "text.format"),
    ("reasoning_effort", "reasoning.effort"),
    ("tool_choice.function", "tool_choice"),
    ("tool_choice.allowed_tools", "tool_choice"),
    ("messages", "input"),
)


@dataclass(frozen=True, slots=True)
class Checked:
    """What is known of a request before its input is looked at."""

    tools: list[FunctionTool]
    logprobs: bool


def check(request: ResponseRequest, ignored: list[str]) -> Checked:
    for name in _NOT_BUILT:
        if getattr(request, name) is not None:
            raise unbuilt(name, f"{name} is not supported by this server.")
    if request.background and request.stream:
        raise unbuilt("stream", "A background response cannot be streamed by this server.")
    if request.background and request.store is False:
        raise invalid("background", "background needs store to be true.", "conflicting_parameters")
    _check_metadata(request.metadata or {})
    if request.text is not None and request.text.verbosity not in (None, "medium"):
        ignored.append("text.verbosity")
    if request.reasoning is not None and request.reasoning.summary is not None:
        ignored.append("reasoning.summary")
    logprobs = _check_include(request.include or [], ignored) or bool(request.top_logprobs)
    return Checked(_function_tools(request.tools or [], ignored), logprobs)


def _check_metadata(metadata: dict[str, str]) -> None:
    if len(metadata) > _MAX_METADATA:
        raise invalid("metadata", f"metadata holds at most {_MAX_METADATA} pairs.", "value_out_of_range")
    for key, value in metadata.items():
        if len(key) > _MAX_METADATA_KEY or len(value) > _MAX_METADATA_VALUE:
            limits = f"keys of at most {_MAX_METADATA_KEY} and values of at most {_MAX_METADATA_VALUE} characters"
            raise invalid(f"metadata.{key[:_MAX_METADATA_KEY]}", f"metadata takes {limits}.", "value_out_of_range")


def _check_include(include: Sequence[str], ignored: list[str]) -> bool:
    """Whether logprobs are wanted."""
    for index, name in enumerate(include):
        where = f"include[{index}]"
        if name not in INCLUDES:
            raise invalid(where, f"{where}: '{name[:60]}' is not known.", "invalid_value")
        if name == ENCRYPTED:
            ignored.append(where)
        elif name != LOGPROBS:
            raise unbuilt(where, f"{where}: '{name}' is not supported by this server.")
    return LOGPROBS in include


def _function_tools(raws: Sequence[Raw], ignored: list[str]) -> list[FunctionTool]:
    tools = []
    for index, raw in enumerate(raws):
        where = f"tools[{index}]"
        kind = decode(raw, ItemHead, where).type
        if kind is None:
            raise invalid(f"{where}.type", f"Missing required field: {where}.type.", "missing_required_parameter")
        _check_tool_kind(kind, f"{where}.type")
        tools.append(decode(raw, FunctionTool, where))
        given = decode(raw, dict[str, Any], where)
        ignored += [f"{where}.{name}" for name, value in given.items() if name not in _OF_TOOL and value is not None]
    return tools


def _check_tool_kind(kind: str, where: str) -> None:
    if kind in HOSTED_TOOLS:
        raise unbuilt(where, f"{where} '{kind}' is not supported by this server: only functions are.")
    if kind != "function":
        raise invalid(where, f"{where} must be function; '{kind[:40]}' is not supported.", "invalid_value")


def _tool_choice(value: Any) -> Any:
    """In a chat's form."""
    if not isinstance(value, dict):
        return value
    kind = value.get("type")
    if kind == "allowed_tools":
        tools = value.get("tools")
        if not isinstance(tools, list):
            raise invalid("tool_choice.tools", "tool_choice.tools must be an array of tools.", "invalid_type")
        named = [_named(tool, f"tool_choice.tools[{index}]") for index, tool in enumerate(tools)]
        return {"type": kind, "allowed_tools": {"mode": value.get("mode"), "tools": named}}
    return _named(value, "tool_choice")


def _named(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not isinstance(value.get("type"), str):
        raise invalid(where, f"{where} must be an object with a type.", "invalid_type")
    _check_tool_kind(value["type"], f"{where}.type")
    if not isinstance(value.get("name"), str):
        name = f"{where}.name"
        raise invalid(name, f"Missing required field: {name}.", "missing_required_parameter")
    return {"type": "function", "function": {"name": value["name"]}}


def chat_request(request: ResponseRequest, checked: Checked, turns: Sequence[Sourced]) -> ChatRequest:
    shared = {name: getattr(request, name) for name in _SHARED_WITH_CHAT}
    return ChatRequest(
        **shared,
        messages=[Raw(encode(turn.message)) for turn in turns],
        max_completion_tokens=request.max_output_tokens,
        stream_options=None if request.stream_options is None else StreamOptions(),
        tools=[_chat_tool(tool) for tool in checked.tools] or None,
        tool_choice=_tool_choice(request.tool_choice),
        response_format=_response_format(request),
        reasoning_effort=None if request.reasoning is None else request.reasoning.effort,
        logprobs=checked.logprobs or None,
        top_logprobs=request.top_logprobs if checked.logprobs else None,
    )


def _chat_tool(tool: FunctionTool) -> Raw:
    function = {"name": tool.name, "strict": tool.strict, "parameters": tool.parameters}
    return Raw(encode({"type": "function", "function": {**function, "description": tool.description}}))


def _response_format(request: ResponseRequest) -> Any:
    given = None if request.text is None else request.text.format
    if given is None or given.get("type") != "json_schema":
        return given
    return {"type": "json_schema", "json_schema": {name: value for name, value in given.items() if name != "type"}}


# errors


def renamed(text: str, turns: Sequence[Sourced]) -> str:
    """The names of a chat's fields as this API has them."""

    def source(match: re.Match[str]) -> str:
        return turns[int(match[1])].source

    text = re.sub(r"\bmessages\[(\d+)\](?:\.[\w.\[\]]*\w\]?)?", source, text)
    text = re.sub(r"\b(tools\[\d+\])\.function\b", r"\1", text)
    for chat_name, name in _NAMES:
        text = re.sub(rf"\b{re.escape(chat_name)}\b", name, text)
    return text


def renamed_error(error: ApiError, turns: Sequence[Sourced]) -> ApiError:
    param = None if error.param is None else renamed(error.param, turns)
    message = renamed(error.message, turns)
    return ApiError(error.status, message, type=error.type, param=param, code=error.code, headers=error.headers)
