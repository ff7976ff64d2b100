"""What a program asks for, as the body of a request: the names and the checks are the server's own."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar

import msgspec
from msgspec import Struct

from gateway.offline.errors import LLMError

if TYPE_CHECKING:
    from gateway.errors import ApiError
    from gateway.openai import AnswerMessage

    Message = Mapping[str, Any] | AnswerMessage
    Conversation = Sequence[Message]

Prompt = str | list[int]
T = TypeVar("T")


class Sampling(TypedDict, total=False):
    """The keywords of all calls. Each means what the field of that name means to the server, with its default."""

    max_tokens: int
    min_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    logit_bias: Mapping[int, float]
    seed: int
    n: int
    stop: str | list[str]
    stop_token_ids: list[int]
    include_stop_str_in_output: bool
    ignore_eos: bool
    allowed_token_ids: list[int]
    bad_words: list[str]
    logprobs: int  # the most likely tokens that are told beside each generated one
    prompt_logprobs: int
    response_format: Mapping[str, Any]
    structured_outputs: Mapping[str, Any]
    truncate_prompt_tokens: int
    truncation_side: Literal["left", "right"]
    skip_special_tokens: bool
    cache_salt: str
    priority: int


class PromptSampling(Sampling, total=False):
    """Of `generate`, and of `stream` with a prompt."""

    suffix: str
    add_special_tokens: bool


class ChatSampling(Sampling, total=False):
    """Of `chat`, and of `stream` with messages."""

    tools: Sequence[Mapping[str, Any]]
    tool_choice: str | Mapping[str, Any]
    parallel_tool_calls: bool
    reasoning_effort: str
    chat_template_kwargs: Mapping[str, Any]
    add_generation_prompt: bool
    continue_final_message: bool


class StreamSampling(PromptSampling, ChatSampling, total=False):
    """Of `stream`: which of them it takes depends on what it is given."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request. `place` is its index, where it is one of a list."""

    source: Literal["prompt", "messages"]
    given: Prompt | Conversation
    sampling: Mapping[str, Any]
    place: int | None = None

    def body(self, model: str) -> bytes:
        """Raises LLMError for what no JSON can hold."""
        fields = {"model": model, self.source: self.given, "return_token_ids": True, **self.sampling}
        if self.source == "messages" and fields.get("logprobs") is not None:
            fields |= {"logprobs": True, "top_logprobs": fields["logprobs"]}
        try:
            return msgspec.json.encode(fields, enc_hook=_encoded)
        except (TypeError, ValueError, OverflowError) as error:
            raise LLMError(f"{self._at()}an argument cannot be sent to the engine: {error}", self._path("")) from None

    def named(self, error: ApiError) -> LLMError:
        """The same fault, by the names that the program used."""
        param, message = error.param, error.message
        if param == "top_logprobs":
            param, message = "logprobs", message.replace(param, "logprobs")
        if param is not None and not param.startswith(self.source):
            return LLMError(message, param, error.code)
        rest = (param or "").removeprefix(self.source)
        return LLMError(self._at() + message, None if param is None else self._path(rest), error.code)

    def spares_others(self, error: LLMError) -> bool:
        """False: those beside it would fail the same way, for it is about what they share."""
        return error.param is None or error.param.startswith(self._path(""))

    def _path(self, rest: str) -> str:
        if self.place is None:
            return self.source + rest
        return f"{'prompts' if self.source == 'prompt' else self.source}[{self.place}]{rest}"

    def _at(self) -> str:
        return "" if self.place is None else self._path("") + ": "


def _encoded(value: Any) -> Any:
    """Numbers and arrays of other libraries, and messages that are objects of theirs."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "model_dump"):
        return value.model_dump(exclude_none=True)
    raise TypeError(f"it holds a {type(value).__name__}")


def _is_one(prompts: Any) -> bool:
    """Text, or token ids."""
    return isinstance(prompts, str) or (len(prompts) > 0 and not hasattr(prompts[0], "__len__"))


def prompt_asks(prompts: Prompt | Sequence[Prompt], sampling: Mapping[str, Any]) -> Ask | list[Ask]:
    """One, or one each. Raises LLMError."""
    _check_names(sampling, PromptSampling)
    if _is_one(prompts):
        return Ask("prompt", prompts, sampling)  # type: ignore[arg-type]
    return [Ask("prompt", prompt, sampling, place) for place, prompt in enumerate(prompts)]  # type: ignore[arg-type]


def chat_asks(messages: Conversation | Sequence[Conversation], sampling: Mapping[str, Any]) -> Ask | list[Ask]:
    """One, or one each. Raises LLMError."""
    _check_names(sampling, ChatSampling)
    if messages and isinstance(messages[0], Sequence):
        return [Ask("messages", each, sampling, place) for place, each in enumerate(messages)]  # type: ignore[arg-type]
    return Ask("messages", messages, sampling)  # type: ignore[arg-type]


def stream_ask(given: Prompt | Conversation, sampling: Mapping[str, Any]) -> Ask:
    """Raises LLMError."""
    is_chat = not isinstance(given, str) and len(given) > 0 and isinstance(given[0], Mapping | Struct)
    ask = chat_asks(given, sampling) if is_chat else prompt_asks(given, sampling)  # type: ignore[arg-type]
    if isinstance(ask, list):
        raise LLMError("A stream has one prompt or one conversation.", ask[0].source)
    if sampling.get("n", 1) != 1:
        raise LLMError(f"n must be 1 in a stream, but is {sampling['n']}.", "n", "value_out_of_range")
    return ask


def _check_names(sampling: Mapping[str, Any], known: type[Any]) -> None:
    names = known.__annotations__
    for name in sampling:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            told = f" Did you mean {near[0]}?" if near else ""
            raise LLMError(f"There is no argument {name!r} here.{told}", name, "unknown_argument")
