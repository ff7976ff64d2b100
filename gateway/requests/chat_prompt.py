"""From checked messages to prompt ids: the model's template, and what a request tells it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gateway.chat import tools as chat_tools
from gateway.model.served import ServedModel
from gateway.openai import ChatRequest
from gateway.requests.conversation import ToolChoice, Turn, tool_document
from gateway.requests.parse import invalid
from gateway.timeline.laps import lap

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
_RESERVED = frozenset({"messages", "tools", "add_generation_prompt", "continue_final_message", "tokenize"})


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    ids: list[int]
    choice: ToolChoice


def encode_chat(
    request: ChatRequest, turns: list[Turn], choice: ToolChoice, model: ServedModel, ignored: list[str]
) -> ChatPrompt:
    """Adds what the template does not read to `ignored`."""
    template = model.chat_template
    if template is None:
        message = f"The model '{model.name}' has no chat template. Use /v1/completions with a prompt."
        raise invalid("messages", message, "no_chat_template")
    continues = bool(request.continue_final_message)
    _check_ending(request, turns, continues)
    variables = _variables(request, template.variables, ignored)
    knows_tools = chat_tools.knows_tools(template.source)
    if knows_tools:
        variables["tools"] = [tool_document(tool) for tool in choice.functions] or None

    def encode(turns: list[Turn]) -> list[int]:
        if knows_tools:
            turns = chat_tools.template_messages(turns)
        else:
            turns = chat_tools.fallback(turns, choice.functions, model.tool_format)
        with lap("template"):
            return template.encode(
                turns,
                add_generation_prompt=not continues and request.add_generation_prompt is not False,
                continue_final=continues,
                variables=variables,
            )

    try:
        ids = encode(turns)
    except RecursionError:  # what could just be read is walked through again
        message = "The messages, their tools or chat_template_kwargs are nested too deeply."
        raise invalid("messages", message, "invalid_value") from None
    named = [f"messages[{index}].name" for index, turn in enumerate(turns) if "name" in turn]
    if named and encode([{key: turn[key] for key in turn if key != "name"} for turn in turns]) == ids:
        ignored += named
    return ChatPrompt(ids, choice)


def _check_ending(request: ChatRequest, turns: list[Turn], continues: bool) -> None:
    if not continues:
        return
    if request.add_generation_prompt:
        message = "continue_final_message and add_generation_prompt exclude each other."
        raise invalid("continue_final_message", message, "conflicting_parameters")
    if turns[-1]["role"] != "assistant" or turns[-1].get("tool_calls"):
        message = "continue_final_message needs a last message of the assistant, with text."
        raise invalid("continue_final_message", message, "invalid_value")


def _variables(request: ChatRequest, read: frozenset[str], ignored: list[str]) -> dict[str, Any]:
    """What the template reads beside messages and tools."""
    given = dict(request.chat_template_kwargs or {})
    for name in given:
        if name in _RESERVED:
            where = f"chat_template_kwargs.{name}"
            raise invalid(where, f"{where} is a field of the request itself.", "conflicting_parameters")
    ignored += [f"chat_template_kwargs.{name}" for name in given if name not in read]
    effort = request.reasoning_effort
    if effort is None:
        return given
    if effort not in EFFORTS:
        raise invalid("reasoning_effort", f"reasoning_effort must be one of {', '.join(EFFORTS)}.", "invalid_value")
    told = {"reasoning_effort": effort, "enable_thinking": effort != "none", "thinking": effort != "none"}
    if not told.keys() & read:
        ignored.append("reasoning_effort")
    return {**told, **given}
