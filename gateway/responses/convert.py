"""From a request to the chat that answers it. What is known and not built is refused by its name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from msgspec import Raw

from gateway.errors import ApiError
from gateway.openai import ChatRequest, StreamOptions, encode
from gateway.requests.conversation import MAX_TOOLS
from gateway.requests.parse import FORMS, LENGTHS, SAMPLING, decode, invalid, unbuilt
from gateway.responses.turns import Sourced
from gateway.responses.types import FunctionTool, ItemHead, Nested, ReasoningConfig, ResponseRequest, TextConfig

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
MISNAMED: Mapping[str, str] = {  # other APIs' fields, and what to use instead
    **FORMS,
    **SAMPLING,
    **dict.fromkeys((*LENGTHS, "max_tokens", "max_completion_tokens"), "max_output_tokens"),
    "messages": "input",
    "system": "instructions",
    "response_format": "text.format",
    **{f"guided_{kind}": f"structured_outputs.{kind}" for kind in ("json", "regex", "choice", "grammar")},
}
_SHARED_WITH_CHAT = (
    *("model", "temperature", "top_p", "parallel_tool_calls", "stream", "stop", "seed", "presence_penalty"),
    *("frequency_penalty", "logit_bias", "top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos"),
    *("stop_token_ids", "bad_words", "cache_salt", "priority", "structured_outputs", "chat_template_kwargs"),
)
_OF_TOOL = {"type", *FunctionTool.__struct_fields__}
_MAX_METADATA, _MAX_METADATA_KEY, _MAX_METADATA_VALUE = 16, 64, 512
_OF_FORMAT = {"type", "name", "schema", "strict"}
_MAX_RENAMED = 64  # names without effect; fewer are told
_NAMES = (  # a chat's fields, and what they are called here
    (r"(tools\[\d+\])\.function", r"\1"),
    (r"tool_choice\.allowed_tools\.(tools\[\d+\])\.function", r"tool_choice.\1"),
    (r"tool_choice\.(function|allowed_tools)", "tool_choice"),
    (r"response_format(\.json_schema)?", "text.format"),
    (r"max_completion_tokens", "max_output_tokens"),
    (r"reasoning_effort", "reasoning.effort"),
    (r"messages", "input"),
)
_QUOTE_NOBODY = ("conflicting_parameters", "context_length_exceeded")  # errors that name more fields than one


@dataclass(frozen=True, slots=True)
class Checked:
    """What is known of a request before its input is looked at."""

    tools: list[FunctionTool]
    logprobs: bool


def check(request: ResponseRequest, nested: Nested, ignored: list[str]) -> Checked:
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
    ignored += [*_unknown(nested), *_unknown_in_choice(request.tool_choice)]
    logprobs = _check_include(request.include or [], ignored) or bool(request.top_logprobs)
    return Checked(_function_tools(request.tools or [], ignored), logprobs)


def _unknown(nested: Nested) -> Iterator[str]:
    text, reasoning = nested.text or {}, nested.reasoning or {}
    yield from _others("text", text, TextConfig.__struct_fields__)
    yield from _others("text.format", text.get("format") or {}, _OF_FORMAT)
    yield from _others("reasoning", reasoning, ReasoningConfig.__struct_fields__)


def _unknown_in_choice(choice: Any) -> Iterator[str]:
    if not isinstance(choice, dict):
        return
    is_list = choice.get("type") == "allowed_tools"
    yield from _others("tool_choice", choice, ("type", "mode", "tools") if is_list else ("type", "name"))
    tools = choice.get("tools") if is_list else None
    for index, tool in enumerate(tools if isinstance(tools, list) else []):
        if isinstance(tool, dict):
            yield from _others(f"tool_choice.tools[{index}]", tool, ("type", "name"))


def _others(where: str, given: Mapping[str, Any], known: Iterable[str]) -> Iterator[str]:
    return (f"{where}.{name}" for name, value in given.items() if name not in known and value is not None)


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
    if len(raws) > MAX_TOOLS:
        raise invalid("tools", f"tools holds at most {MAX_TOOLS} tools, but got {len(raws)}.", "value_out_of_range")
    tools = []
    for index, raw in enumerate(raws):
        where = f"tools[{index}]"
        kind = decode(raw, ItemHead, where).type
        if kind is None:
            raise invalid(f"{where}.type", f"Missing required field: {where}.type.", "missing_required_parameter")
        _check_tool_kind(kind, f"{where}.type")
        tools.append(decode(raw, FunctionTool, where))
        given = decode(raw, dict[str, Any], where)
        ignored += _others(where, given, _OF_TOOL)
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


def renamed(name: str, turns: Sequence[Sourced]) -> str:
    """The path of a chat's field as this API has it."""
    if message := re.match(r"messages\[(\d{1,9})\]", name):
        index = int(message[1])
        return turns[index].source if index < len(turns) else "input"
    for pattern, own in _NAMES:
        told, found = re.subn(rf"^{pattern}\b", own, name)
        if found:
            return told
    return name


def renamed_all(names: Sequence[str], turns: Sequence[Sourced]) -> list[str]:
    return [*(renamed(name, turns) for name in names[:_MAX_RENAMED]), *names[_MAX_RENAMED:]]


def renamed_error(error: ApiError, turns: Sequence[Sourced]) -> ApiError:
    """In the message, which may quote the request, nothing is replaced but the error's own field."""
    if error.param is None:
        return error
    param = renamed(error.param, turns)
    message = _replaced(error.param, param, error.message)
    if error.code in _QUOTE_NOBODY or error.param == "min_tokens":
        for name in ("response_format", "max_completion_tokens", "messages"):
            message = _replaced(name, renamed(name, turns), message)
    return ApiError(error.status, message, type=error.type, param=param, code=error.code, headers=error.headers)


def _replaced(name: str, own: str, message: str) -> str:
    return re.sub(rf"(?<![\w.]){re.escape(name)}(?!\w)", lambda match: own, message)
