"""The JSON that OpenAI's clients send and expect. Shapes only: ranges and meaning are checked in convert.py.

A field typed `Any` is one whose elements are checked by hand, because an error must name the element's index.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

# requests


class StreamOptions(Struct, kw_only=True):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # accepted; there is nothing to obfuscate


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


class ChatRequest(GenerateRequest, kw_only=True):
    messages: list[Raw]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None


class CompletionRequest(GenerateRequest, kw_only=True):
    prompt: Any
    logprobs: int | None = None
    echo: bool | None = None
    best_of: int | None = None


class Message(Struct, kw_only=True):
    role: str
    content: str | list[Raw] | None = None
    name: str | None = None
    tool_calls: list[Raw] | None = None
    tool_call_id: str | None = None
    function_call: Any = None
    audio: Any = None
    refusal: str | None = None


class TextPart(Struct, kw_only=True):
    type: str
    text: str | None = None


class TokenizeRequest(Struct, kw_only=True):
    model: str | None = None
    prompt: str | None = None
    messages: list[Raw] | None = None


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
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


WireFinish = Literal["stop", "length"]


class AnswerMessage(Struct, frozen=True):
    role: str
    content: str
    refusal: None = None


class ChatChoice(Struct, frozen=True):
    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: WireFinish


class CompletionChoice(Struct, frozen=True):
    """Of an answer and of a stream's chunk alike: there, finish_reason is null until the last."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: WireFinish | None


class ChatDelta(Struct, frozen=True, omit_defaults=True):
    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChatChunkChoice(Struct, frozen=True):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: WireFinish | None


Choice = ChatChoice | CompletionChoice | ChatChunkChoice


class Reply(Struct, frozen=True):
    """An answer or a chunk of one: `object` says which, and all of one request share the other heads."""

    id: str
    object: Literal["chat.completion", "chat.completion.chunk", "text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: Usage | UnsetType | None = UNSET


class ModelCard(Struct, frozen=True):
    id: str
    created: int
    object: Literal["model"] = "model"
    owned_by: str = "headrace"
    max_model_len: int | UnsetType = UNSET


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


class Detokenized(Struct, frozen=True):
    prompt: str


_encoder = msgspec.json.Encoder()
encode = _encoder.encode
