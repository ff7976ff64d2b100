"""nanochat's limits of a request, in its words: what its web server refuses, this one refuses on the same path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gateway.chat_web.types import Message
from gateway.errors import ApiError
from gateway.services import HttpSettings

ROLES = ("user", "assistant")


@dataclass(frozen=True, slots=True)
class Bounds:
    messages: int = 500
    message_chars: int = 8000
    total_chars: int = 32000
    max_temperature: float = 2.0
    min_top_k: int = 0  # 0: the whole vocabulary
    max_top_k: int = 200
    max_tokens: int = 4096


NANOCHAT = Bounds()


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request says of sampling."""

    temperature: float | None
    top_k: int | None
    max_tokens: int | None


def bounds_of(settings: HttpSettings) -> Bounds:
    """nanochat's, and the server's own where those are lower."""
    max_top_k = _lower(NANOCHAT.max_top_k, settings.max_top_k)
    return Bounds(
        min(NANOCHAT.messages, settings.max_messages),
        _lower(NANOCHAT.message_chars, settings.max_message_chars),
        _lower(NANOCHAT.total_chars, settings.max_total_chars),
        min(NANOCHAT.max_temperature, settings.max_temperature),
        0 if max_top_k == NANOCHAT.max_top_k else 1,
        max_top_k,
        _lower(NANOCHAT.max_tokens, settings.max_tokens_limit),
    )


def _lower(ours: int, most: int | None) -> int:
    return ours if most is None else min(ours, most)


def check_num_messages(count: int, bounds: Bounds) -> None:
    """Before they are decoded. Raises 400, as all here."""
    if count == 0:
        raise _refused("messages", "At least one message is required")
    if count > bounds.messages:
        message = f"Too many messages. Maximum {bounds.messages} messages allowed per request"
        raise _refused("messages", message, "request_too_long")


def check(asked: Asked, messages: Sequence[Message], bounds: Bounds) -> None:
    _check_lengths(messages, bounds)
    for index, message in enumerate(messages):
        if message.role not in ROLES:
            told = f"Message {index} has invalid role. Must be 'user', 'assistant', or 'system'"
            raise _refused(f"messages[{index}].role", told, "invalid_value")
    low, high = 0.0, bounds.max_temperature
    if asked.temperature is not None and not low <= asked.temperature <= high:
        raise _refused("temperature", f"Temperature must be between {low} and {high}")
    _check_range("top_k", asked.top_k, bounds.min_top_k, bounds.max_top_k)
    _check_range("max_tokens", asked.max_tokens, 1, bounds.max_tokens)


def _check_lengths(messages: Sequence[Message], bounds: Bounds) -> None:
    total = 0
    for index, message in enumerate(messages):
        where = f"messages[{index}].content"
        if not message.content:
            raise _refused(where, f"Message {index} has empty content")
        if len(message.content) > bounds.message_chars:
            most = f"Maximum {bounds.message_chars} characters allowed per message"
            raise _refused(where, f"Message {index} is too long. {most}", "request_too_long")
        total += len(message.content)
    if total > bounds.total_chars:
        told = f"Total conversation is too long. Maximum {bounds.total_chars} characters allowed"
        raise _refused("messages", told, "request_too_long")


def _check_range(param: str, value: int | None, low: int, high: int) -> None:
    if value is not None and not low <= value <= high:
        raise _refused(param, f"{param} must be between {low} and {high}")


def _refused(param: str, message: str, code: str = "value_out_of_range") -> ApiError:
    return ApiError(400, message, param=param, code=code)
