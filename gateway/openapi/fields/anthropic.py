"""Fields of /v1/messages."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.messages.routes import MAX_STOPS
from gateway.openapi.fields.forms import FUNCTION_NAME, NULL, STOP, TEXT, Schema, array, either, ref, text, typed

_BLOCKS = either(
    *map(ref, ("AnthropicTextInput", "AnthropicThinkingInput", "AnthropicToolUseInput", "AnthropicToolResultInput")),
    typed("redacted_thinking"),
)

ANTHROPIC: Mapping[str, Schema] = {
    "AnthropicConversation.structured_outputs": text("Without effect on the count."),
    "AnthropicMessagesRequest.max_tokens": text(
        "Most tokens of the answer; it ends sooner where the context does.", minimum=1
    ),
    "AnthropicMessagesRequest.temperature": text(
        "How far sampling strays from the most likely token; 0: not at all.", minimum=0, maximum=1
    ),
    "stop_sequences": text(
        f"Up to {MAX_STOPS} strings, each of which ends the answer.", items=STOP, maxItems=MAX_STOPS
    ),
    "system": text("What stands before the conversation.", **either(TEXT, array(ref("AnthropicTextInput")), NULL)),
    "thinking": text("Whether the model reasons first, for templates that can be told."),
    "output_config": text("Effort and form of the answer."),
    "output_format": text("As output_config.format."),
    "speed": text("Without effect here."),
    "mcp_servers": text("Not built.", **either(NULL, array({}, maxItems=0))),
    "container": text("Not built.", **either(NULL, array({}, maxItems=0))),
    "AnthropicInputMessage.role": text("Whose message it is."),
    "AnthropicInputMessage.content": text("Text or blocks.", **either(TEXT, array(_BLOCKS, minItems=1))),
    "AnthropicTextInput.text": text("The text."),
    "AnthropicThinkingInput.thinking": text("Earlier reasoning of the assistant."),
    "AnthropicThinkingInput.signature": text("Without effect here."),
    "AnthropicToolUseInput.id": text("Named by the block with the result."),
    "AnthropicToolUseInput.name": text("The tool."),
    "AnthropicToolUseInput.input": text("The arguments."),
    "AnthropicToolResultInput.tool_use_id": text("The call that it answers."),
    "AnthropicToolResultInput.content": text("The result.", **either(TEXT, array(ref("AnthropicTextInput")), NULL)),
    "AnthropicToolResultInput.is_error": text("The call failed.", default=False),
    "AnthropicCustomTool.name": text("By which it is called.", **FUNCTION_NAME),
    "AnthropicCustomTool.type": text("Anthropic's own tools are not built.", enum=["custom", None]),
    "AnthropicCustomTool.input_schema": text("A JSON schema of the arguments."),
    "AnthropicCustomTool.description": text("For the model."),
    "AnthropicCustomTool.strict": text("The arguments keep to the schema.", default=False),
    "AnthropicCustomTool.eager_input_streaming": text("Without effect: all input is streamed as it comes."),
    "AnthropicCustomTool.defer_loading": text("Without effect here."),
    "AnthropicCustomTool.allowed_callers": text("Without effect here."),
    "AnthropicThinking.type": text("disabled: no reasoning.", enum=["enabled", "disabled", "adaptive"]),
    "AnthropicThinking.budget_tokens": text("Without effect here."),
    "AnthropicThinking.display": text("omitted: the answer's thinking blocks are empty.", default="summarized"),
    "AnthropicOutputConfig.effort": text("For templates of models that reason."),
    "AnthropicOutputConfig.format": text("The form of the answer."),
    "AnthropicOutputFormat.type": text("What follows."),
    "AnthropicOutputFormat.schema": text("A JSON schema."),
    "AnthropicToolChoice.type": text("any: some tool; tool: the one that is named."),
    "AnthropicToolChoice.name": text("With type tool."),
    "AnthropicToolChoice.disable_parallel_tool_use": text("At most one call.", default=False),
}
for _name in ("AnthropicMessagesRequest", "AnthropicConversation"):
    _own = {
        "messages": text("The conversation so far.", items=ref("AnthropicInputMessage"), minItems=1),
        "tools": text("Tools that the model may call.", items=ref("AnthropicCustomTool")),
        "tool_choice": text("Whether the model calls, and what."),
    }
    ANTHROPIC = {**ANTHROPIC, **{f"{_name}.{field}": schema for field, schema in _own.items()}}
