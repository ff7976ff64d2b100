"""Whole types: how their fields depend on each other."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.openapi.fields.forms import NULL, TEXT, Schema, array, either, having, ref, typed

_PARTS = either(TEXT, array(ref("TextPart"), minItems=1))
_NO_CALLS: Schema = {"maxItems": 0}
_ASSISTANT: Schema = {"const": "assistant"}
_USER_BLOCKS = array(either(ref("AnthropicTextInput"), ref("AnthropicToolResultInput")), minItems=1)
_ASSISTANT_BLOCKS = array(
    either(
        *map(ref, ("AnthropicTextInput", "AnthropicThinkingInput", "AnthropicToolUseInput")),
        typed("redacted_thinking"),
    ),
    minItems=1,
)
_EITHER_PROMPT = either(
    having(["prompt"], prompt=TEXT, messages=NULL, tools=_NO_CALLS),
    having(["messages"], messages={"type": "array"}, prompt=NULL),
)

TYPES: Mapping[str, Schema] = {
    "Message": either(
        having(["content"], role={"enum": ["system", "developer", "user"]}, content=_PARTS, tool_calls=_NO_CALLS),
        having(
            ["content", "tool_call_id"],
            role={"const": "tool"},
            content=either(TEXT, array(ref("TextPart"))),
            tool_call_id=TEXT,
            tool_calls=_NO_CALLS,
        ),
        having(["content"], role=_ASSISTANT, content=_PARTS),
        having(["tool_calls"], role=_ASSISTANT, tool_calls={"type": "array", "minItems": 1}),
        having(["refusal"], role=_ASSISTANT, refusal={"type": "string", "minLength": 1}),
    ),
    "TextPart": either(
        having(["text"], type={"const": "text"}, text=TEXT),
        having(["refusal"], type={"const": "refusal"}, refusal=TEXT),
    ),
    "ToolDefinition": {"required": ["type", "function"]},
    "TokenizeRequest": _EITHER_PROMPT,
    "AnthropicInputMessage": either(
        having([], role={"const": "user"}, content=either(TEXT, _USER_BLOCKS)),
        having([], role=_ASSISTANT, content=either(TEXT, _ASSISTANT_BLOCKS)),
        having([], role={"const": "system"}, content=either(TEXT, array(ref("AnthropicTextInput"), minItems=1))),
    ),
    "AnthropicToolChoice": either(
        having([], type={"enum": ["auto", "any", "none"]}), having(["name"], type={"const": "tool"}, name=TEXT)
    ),
    "ResponsesResponseRequest": {"required": ["model", "input"]},
    "ResponsesPartInput": either(
        having(["text"], type={"enum": ["input_text", "output_text", "text"]}, text=TEXT),
        having(["refusal"], type={"const": "refusal"}, refusal=TEXT),
    ),
}
