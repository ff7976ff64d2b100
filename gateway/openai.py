"""The JSON that OpenAI's clients send and expect. Shapes only: ranges and meaning are checked in convert.py.

A field typed `Any` is one whose elements are checked by hand, because an error must name the element's index.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from gateway.timeline.store import Timings

# requests


class StreamOptions(Struct, kw_only=True):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None  # extension: usage on every chunk
    include_timings: bool | None = None  # extension: the last chunk tells where the time went


class GenerateRequest(Struct, kw_only=True):
    """What both endpoints share."""

    model: str
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None
    stop: Any = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, Any] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # extensions
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    stop_token_ids: list[Any] | None = None
    allowed_token_ids: list[Any] | None = None
    bad_words: list[Any] | None = None
    prompt_logprobs: int | None = None
    truncate_prompt_tokens: int | None = None  # the last so many are kept; -1: all that fit
    truncation_side: Literal["left", "right"] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    include_timings: bool | None = None  # the answer, or the last chunk, tells where the time went
    cache_salt: str | None = None
    priority: int | None = None  # lower runs sooner
    response_format: Any = None
    structured_outputs: dict[str, Any] | None = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None


class ChatRequest(GenerateRequest, kw_only=True):
    messages: list[Raw]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[Raw] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    # extensions
    include_reasoning: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None


class CompletionRequest(GenerateRequest, kw_only=True):
    prompt: Any
    logprobs: int | None = None
    echo: bool | None = None
    best_of: int | None = None
    suffix: str | None = None
    add_special_tokens: bool | None = None  # extension: False adds no BOS


class Message(Struct, kw_only=True):
    role: str
    content: str | list[Raw] | None = None
    name: str | None = None
    tool_calls: list[Raw] | None = None
    tool_call_id: str | None = None
    function_call: Any = None
    audio: Any = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class TextPart(Struct, kw_only=True):
    type: str
    text: str | None = None
    refusal: str | None = None


class ToolCallFunction(Struct, kw_only=True):
    name: str
    arguments: str


class MessageToolCall(Struct, kw_only=True):
    """In an assistant's message of the request."""

    id: str
    function: ToolCallFunction
    type: Literal["function"] = "function"


class FunctionDefinition(Struct, kw_only=True):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolDefinition(Struct, kw_only=True):
    type: str
    function: FunctionDefinition | None = None


class TokenizeRequest(Struct, kw_only=True):
    model: str | None = None
    prompt: str | None = None
    messages: list[Raw] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    tools: list[Raw] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None


class DetokenizeRequest(Struct, kw_only=True):
    tokens: list[Any]
    model: str | None = None


# responses


class PromptDetails(Struct, frozen=True):
    cached_tokens: int
    audio_tokens: int = 0


class CompletionDetails(Struct, frozen=True):
    reasoning_tokens: int = 0
    audio_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class Usage(Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class TopLogprob(Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct, frozen=True):
    content: list[ChatLogprob]
    refusal: None = None


class CompletionLogprobs(Struct, frozen=True):
    tokens: list[str]
    token_logprobs: list[float | None]  # null: of an echoed prompt's first token, which nothing predicted
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class PromptLogprob(Struct, frozen=True):
    """Of one token that could have stood at a place of the prompt."""

    logprob: float
    rank: int
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]  # by token id; null for the first token

Finish = Literal["stop", "length"]
WireFinish = Literal["stop", "length", "tool_calls"]


class CalledFunction(Struct, frozen=True):
    name: str
    arguments: str


class ToolCall(Struct, frozen=True):
    id: str
    function: CalledFunction
    type: Literal["function"] = "function"


class FunctionDelta(Struct, frozen=True, omit_defaults=True):
    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class ToolCallDelta(Struct, frozen=True):
    index: int
    function: FunctionDelta
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET


class AnswerMessage(Struct, frozen=True):
    role: str
    content: str | None
    refusal: None = None
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET  # the same, under the name that some clients look for
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChatChoice(Struct, frozen=True):
    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: WireFinish
    stop_reason: str | int | UnsetType = UNSET  # the stop string or the request's own stop id, where one ended it
    token_ids: list[int] | UnsetType = UNSET


class CompletionChoice(Struct, frozen=True):
    """Of an answer and of a stream's chunk alike: there, finish_reason is null until the last."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Finish | None
    stop_reason: str | int | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET


class ChatDelta(Struct, frozen=True, omit_defaults=True):
    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET


class ChatChunkChoice(Struct, frozen=True):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: WireFinish | None
    stop_reason: str | int | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET


Choice = ChatChoice | CompletionChoice | ChatChunkChoice


ReplyObject = Literal["chat.completion", "chat.completion.chunk", "text_completion"]


class Reply(Struct, frozen=True):
    """An answer or a chunk of one: `object` says which, and all of one request share the other heads."""

    id: str
    object: ReplyObject
    created: int
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: Usage | UnsetType | None = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET  # of a chat, where asked for
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    timings: Timings | UnsetType = UNSET


class PageDefaults(Struct, frozen=True):
    """What the chat page asks with, where nothing is set in it."""

    temperature: float
    top_k: int
    max_tokens: int


class ModelCard(Struct, frozen=True):
    id: str
    created: int
    object: Literal["model"] = "model"
    owned_by: str = "headrace"
    max_model_len: int | UnsetType = UNSET
    page_defaults: PageDefaults | UnsetType = UNSET


class ModelList(Struct, frozen=True):
    data: list[ModelCard]
    object: Literal["list"] = "list"


class Health(Struct, frozen=True):
    status: str
    reason: str | UnsetType = UNSET


class Version(Struct, frozen=True):
    version: str


class Tokenized(Struct, frozen=True):
    count: int
    max_model_len: int | None
    tokens: list[int]
    token_strs: list[str] | UnsetType = UNSET  # where asked for


class RenderedPrompt(Struct, frozen=True):
    prompt: str  # control tokens as their literals
    prompt_token_ids: list[int]


class Rendered(Struct, frozen=True):
    """What would run, had it been sent to the endpoint above."""

    prompts: list[RenderedPrompt]
    parameters: dict[str, Any]
    ignored: list[str]
    grammar: str | None  # that the answer would be held to, in llguidance's form


class Detokenized(Struct, frozen=True):
    prompt: str


_encoder = msgspec.json.Encoder()
encode = _encoder.encode
