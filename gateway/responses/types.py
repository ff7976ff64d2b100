"""The JSON of the Responses API: requests, items, responses and the events of a stream. Shapes only.

What a request's struct does not name has no effect here, and is told. A field typed `Any` is checked by hand.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import UNSET, Raw, Struct, UnsetType

from gateway.openai import ChatLogprob

# requests


class TextConfig(Struct, kw_only=True):
    format: dict[str, Any] | None = None
    verbosity: str | None = None


class ReasoningConfig(Struct, kw_only=True):
    effort: str | None = None
    summary: str | None = None


class ResponseRequest(Struct, kw_only=True):
    model: str
    input: str | list[Raw] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    tools: list[Raw] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    include: list[str] | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    truncation: Literal["auto", "disabled"] | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    store: bool | None = None
    background: bool | None = None
    metadata: dict[str, str] | None = None
    # known and not built
    conversation: Any = None
    prompt: Any = None
    context_management: Any = None
    moderation: Any = None
    access_programs: Any = None
    # extensions, as in a chat
    stop: Any = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, Any] | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[Any] | None = None
    bad_words: list[Any] | None = None
    cache_salt: str | None = None
    priority: int | None = None
    structured_outputs: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class Nested(Struct, kw_only=True):
    """What a request holds objects in, as it came: for names that nobody knows."""

    text: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None


class ItemHead(Struct, kw_only=True):
    """What tells which kind an item of the input is."""

    type: str | None = None
    role: str | None = None


class MessageInput(Struct, kw_only=True):
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[Raw]
    id: str | None = None


class PartInput(Struct, kw_only=True):
    type: str
    text: str | None = None
    refusal: str | None = None


class CallInput(Struct, kw_only=True):
    call_id: str
    name: str
    arguments: str
    id: str | None = None


class CallOutputInput(Struct, kw_only=True):
    call_id: str
    output: str | list[Raw]
    id: str | None = None


class ReasoningPart(Struct, kw_only=True):
    text: str


class ReasoningInput(Struct, kw_only=True):
    id: str | None = None
    content: list[ReasoningPart] | None = None
    summary: list[ReasoningPart] | None = None


class ReferenceInput(Struct, kw_only=True):
    id: str


class FunctionTool(Struct, kw_only=True, frozen=True, tag_field="type", tag="function"):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


# items

Status = Literal["in_progress", "completed", "incomplete"]


class InputText(Struct, frozen=True, tag_field="type", tag="input_text"):
    text: str


class OutputText(Struct, frozen=True, tag_field="type", tag="output_text"):
    text: str
    annotations: list[Any] = []
    logprobs: list[ChatLogprob] = []


class Refusal(Struct, frozen=True, tag_field="type", tag="refusal"):
    refusal: str


class ReasoningText(Struct, frozen=True, tag_field="type", tag="reasoning_text"):
    text: str


class SummaryText(Struct, frozen=True, tag_field="type", tag="summary_text"):
    text: str


class Message(Struct, frozen=True, tag_field="type", tag="message"):
    id: str
    role: Literal["user", "assistant", "system", "developer"]
    content: list[InputText | OutputText | Refusal]
    status: Status = "completed"


class ReasoningItem(Struct, frozen=True, tag_field="type", tag="reasoning"):
    id: str
    content: list[ReasoningText]
    summary: list[SummaryText] = []
    status: Status = "completed"


class FunctionCall(Struct, frozen=True, tag_field="type", tag="function_call"):
    id: str
    call_id: str
    name: str
    arguments: str
    status: Status = "completed"


class FunctionCallOutput(Struct, frozen=True, tag_field="type", tag="function_call_output"):
    id: str
    call_id: str
    output: str | list[InputText]
    status: Status = "completed"


Item = Message | ReasoningItem | FunctionCall | FunctionCallOutput


class ItemList(Struct, frozen=True, kw_only=True):
    data: list[Item]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: Literal["list"] = "list"


# responses


class InputDetails(Struct, frozen=True):
    cached_tokens: int
    cache_write_tokens: int = 0


class OutputDetails(Struct, frozen=True):
    reasoning_tokens: int


class ResponseUsage(Struct, frozen=True):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class IncompleteDetails(Struct, frozen=True):
    reason: Literal["max_output_tokens"] = "max_output_tokens"


class ResponseError(Struct, frozen=True):
    code: Literal["server_error"]  # OpenAI lists the codes, and the rest of them is about other things
    message: str


class TextShape(Struct, frozen=True):
    format: dict[str, Any]


class ReasoningShape(Struct, frozen=True):
    effort: str | None
    summary: None = None


ResponseStatus = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]


class Response(Struct, frozen=True, kw_only=True):
    id: str
    created_at: int
    model: str
    status: ResponseStatus
    object: Literal["response"] = "response"
    completed_at: int | None = None
    background: bool
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    output: list[Item] = []
    parallel_tool_calls: bool
    previous_response_id: str | None
    reasoning: ReasoningShape
    service_tier: Literal["default"] = "default"
    store: bool
    temperature: float
    text: TextShape
    tool_choice: Any
    tools: list[FunctionTool]
    top_logprobs: int
    top_p: float
    truncation: Literal["auto", "disabled"]
    usage: ResponseUsage | None = None


class Deleted(Struct, frozen=True):
    id: str
    object: Literal["response"] = "response"
    deleted: bool = True


class InputTokens(Struct, frozen=True):
    input_tokens: int
    object: Literal["response.input_tokens"] = "response.input_tokens"


# events


class Event(Struct, kw_only=True):
    """Numbered when it is sent."""

    type: str
    sequence_number: int = 0


class ResponseEvent(Event, kw_only=True):
    response: Response


class ItemEvent(Event, kw_only=True):
    output_index: int
    item: Item


class PartEvent(Event, kw_only=True):
    item_id: str
    output_index: int
    content_index: int
    part: OutputText | ReasoningText


class TextEvent(Event, kw_only=True):
    """A piece of text in `delta`, or all of it in `text`."""

    item_id: str
    output_index: int
    content_index: int
    delta: str | UnsetType = UNSET
    text: str | UnsetType = UNSET
    logprobs: list[ChatLogprob] | UnsetType = UNSET


class ArgumentsEvent(Event, kw_only=True):
    """A piece of a call's arguments in `delta`, or all of them in `arguments`."""

    item_id: str
    output_index: int
    delta: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class ErrorEvent(Event, kw_only=True):
    code: str | None
    message: str
    param: str | None
