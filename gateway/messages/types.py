"""The JSON that Anthropic's clients send and expect. Shapes only.

What a struct does not name has no effect here, and is told. A field typed `Any` is checked by hand.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import UNSET, Raw, Struct, UnsetType

# requests


class Thinking(Struct, kw_only=True):
    type: str
    budget_tokens: int | None = None
    display: Literal["summarized", "omitted"] | None = None


class OutputFormat(Struct, kw_only=True):
    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(Struct, kw_only=True):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class ToolChoice(Struct, kw_only=True):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Conversation(Struct, kw_only=True):
    """What the prompt depends on: all that count_tokens takes."""

    model: str
    messages: list[Raw]
    system: str | list[Raw] | None = None
    tools: list[Raw] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None  # where the schema stood before there was output_config
    speed: Literal["standard", "fast"] | None = None
    mcp_servers: Any = None
    structured_outputs: dict[str, Any] | None = None  # extension, as in a chat


class MessagesRequest(Conversation, kw_only=True):
    max_tokens: int
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[Any] | None = None
    stream: bool | None = None
    container: Any = None


class InputMessage(Struct, kw_only=True):
    role: Literal["user", "assistant", "system"]
    content: str | list[Raw]


class BlockHead(Struct):
    type: str


class TextInput(Struct, kw_only=True):
    type: Literal["text"]
    text: str


class ThinkingInput(Struct, kw_only=True):
    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


class ToolUseInput(Struct, kw_only=True):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class ToolResultInput(Struct, kw_only=True):
    type: Literal["tool_result"]
    tool_use_id: str
    content: str | list[Raw] | None = None
    is_error: bool | None = None


class CustomTool(Struct, kw_only=True):
    name: str
    input_schema: dict[str, Any]
    type: str | None = None
    description: str | None = None
    strict: bool | None = None
    eager_input_streaming: bool | None = None
    defer_loading: bool | None = None
    allowed_callers: list[str] | None = None


# answers

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"]


class OutputDetails(Struct, frozen=True):
    thinking_tokens: int


class Usage(Struct, frozen=True):
    """The prompt's tokens are input_tokens and cache_read_input_tokens together."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int
    output_tokens_details: OutputDetails
    cache_creation_input_tokens: int = 0


class TextBlock(Struct, frozen=True, tag_field="type", tag="text"):
    text: str
    citations: None = None


class ThinkingBlock(Struct, frozen=True, tag_field="type", tag="thinking"):
    thinking: str
    signature: str = ""


class ToolUseBlock(Struct, frozen=True, tag_field="type", tag="tool_use"):
    id: str
    name: str
    input: Raw


Block = TextBlock | ThinkingBlock | ToolUseBlock


class Message(Struct, frozen=True, tag_field="type", tag="message"):
    id: str
    model: str
    content: list[Block]
    usage: Usage
    stop_reason: StopReason | None = None
    stop_sequence: str | None = None
    role: Literal["assistant"] = "assistant"


class TextDelta(Struct, frozen=True, tag_field="type", tag="text_delta"):
    text: str


class ThinkingDelta(Struct, frozen=True, tag_field="type", tag="thinking_delta"):
    thinking: str


class SignatureDelta(Struct, frozen=True, tag_field="type", tag="signature_delta"):
    signature: str = ""


class InputDelta(Struct, frozen=True, tag_field="type", tag="input_json_delta"):
    partial_json: str


class MessageEnd(Struct, frozen=True):
    stop_reason: StopReason
    stop_sequence: str | None


class Event(Struct, frozen=True):
    """Of a stream; `type` is also the name under which it is sent."""

    type: str
    index: int | UnsetType = UNSET
    message: Message | UnsetType = UNSET
    content_block: Block | UnsetType = UNSET
    delta: TextDelta | ThinkingDelta | SignatureDelta | InputDelta | MessageEnd | UnsetType = UNSET
    usage: Usage | UnsetType = UNSET


class TokenCount(Struct, frozen=True):
    input_tokens: int
