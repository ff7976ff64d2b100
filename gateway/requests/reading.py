"""How a chat's answer is read and what it is held to: reasoning and tool calls, by the model's own formats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from gateway.answers.parts import ChainedReader, PlainReader, Reader
from gateway.model.served import ServedModel
from gateway.requests.chat_prompt import ChatPrompt
from gateway.requests.convert import TextRules
from gateway.requests.parse import invalid
from gateway.requests.structured import check_leniently, checked, either, enforced_schema, schema_grammar
from gateway.tools.base import Tool
from gateway.tools.grammar import wrap_after_reasoning

_TAIL_IDS = 64  # of a prompt, in which a template may have opened or closed the reasoning


def answer_rules(
    rules: TextRules, prompt: ChatPrompt, model: ServedModel, random_bits: Callable[[int], int]
) -> TextRules:
    """With a reader where there is something to find, and its markers visible."""
    markers: list[str] = []
    makers: list[Callable[[], Reader]] = []
    if model.reasoning is not None:
        reasoning, inside = model.reasoning, starts_inside(prompt, model)
        markers += reasoning.markers
        makers.append(lambda: reasoning.reader(starts_inside=inside))
    if prompt.choice.mode != "none":
        markers += model.tool_format.markers
        makers.append(lambda: model.tool_format.reader(lambda: f"call_{random_bits(96):024x}"))
    if not makers:
        return rules
    special = model.tokenizer.special_ids
    visible = frozenset(special[marker] for marker in markers if marker in special)
    return replace(rules, visible_ids=visible, reader=lambda: _chained([make() for make in makers]))


def _chained(readers: list[Reader]) -> Reader:
    return ChainedReader(*readers) if len(readers) == 2 else (readers or [PlainReader()])[0]


def starts_inside(prompt: ChatPrompt, model: ServedModel) -> bool:
    """Whether the template has opened the reasoning already."""
    if model.reasoning is None:
        return False
    tail = model.tokenizer.decode(prompt.ids[-_TAIL_IDS:], skip_special=False)
    return model.reasoning.prompt_ends_inside(tail)


def answer_grammar(asked: str | None, prompt: ChatPrompt, model: ServedModel) -> str | None:
    """What the answer is held to: `asked` (response_format and its like), calls, or either; after any reasoning."""
    calls = _calls_grammar(prompt, model, asked is not None)
    if prompt.choice.is_forced or asked is None:
        grammar = calls
    else:
        grammar = asked if calls is None else checked(either(calls, asked), "tools")
    if grammar is None or model.reasoning is None:
        return grammar
    inside, special = starts_inside(prompt, model), model.tokenizer.special_ids
    return wrap_after_reasoning(grammar, model.reasoning, starts_inside=inside, special=special)


def _calls_grammar(prompt: ChatPrompt, model: ServedModel, beside_another: bool) -> str | None:
    choice = prompt.choice
    wanted = choice.is_forced or (choice.mode == "auto" and beside_another)
    if choice.mode == "none" or not choice.functions:
        return None
    if not (wanted or not choice.parallel or any(tool.strict for tool in choice.functions)):
        return None
    functions = [_enforced(tool, f"tools[{index}].function.parameters") for index, tool in enumerate(choice.functions)]
    try:
        grammar = model.tool_format.grammar(
            functions,
            required=wanted,
            parallel=choice.parallel,
            strict_only=not wanted,
            special=model.tokenizer.special_ids,
        )
        return checked(grammar, "tools")
    except ValueError as error:
        raise invalid("tools", f"These tools cannot be enforced: {error}", "invalid_json_schema") from None


def _enforced(tool: Tool, where: str) -> Tool:
    """A strict tool in the compiler's terms, or a 400; what others ask for beyond that is left to the model."""
    if tool.parameters is None:
        return tool
    parameters = dict(tool.parameters)
    if not tool.strict:
        check_leniently(parameters, where)
        return tool
    schema_grammar(parameters, where)
    return replace(tool, parameters=enforced_schema(parameters, where))
