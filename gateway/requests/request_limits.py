"""How much one request may ask for, beyond what the model itself can do. Pure; each refusal names the field."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from gateway.errors import ApiError
from gateway.services import HttpSettings


class Sampling(Protocol):
    """What a request says of sampling; None: nothing."""

    @property
    def temperature(self) -> float | None: ...
    @property
    def top_k(self) -> int | None: ...
    @property
    def max_tokens(self) -> int | None: ...


def check_messages(messages: Sequence[Mapping[str, Any]], settings: HttpSettings) -> None:
    """Messages as chat templates take them. Raises 400."""
    check_num_messages(len(messages), settings)
    total = 0
    for index, each in enumerate(messages):
        num_chars = sum(map(len, _texts(each)))
        total += num_chars
        most = settings.max_message_chars
        if most is not None and num_chars > most:
            message = f"Message {index} has {num_chars} characters; this server takes at most {most}."
            raise _too_much(f"messages[{index}]", message)
    if settings.max_total_chars is not None and total > settings.max_total_chars:
        message = f"The messages have {total} characters; this server takes at most {settings.max_total_chars} in all."
        raise _too_much("messages", message)


def check_num_messages(num_messages: int, settings: HttpSettings) -> None:
    """Before they are decoded. Raises 400."""
    if num_messages > settings.max_messages:
        message = f"There are {num_messages} messages; this server takes at most {settings.max_messages}."
        raise _too_much("messages", message)


def _texts(message: Mapping[str, Any]) -> Iterator[str]:
    yield message.get("content") or ""
    yield message.get("reasoning_content") or ""
    for call in message.get("tool_calls") or ():
        yield call["function"]["arguments"]


def check_sampling(request: Sampling, settings: HttpSettings) -> None:
    """The highest values only: the lowest are the same everywhere. Raises 400."""
    _at_most("temperature", request.temperature, settings.max_temperature)
    if settings.max_top_k is not None and request.top_k is not None and request.top_k < 1:
        message = f"top_k is {request.top_k}, which bounds nothing; this server takes 1 to {settings.max_top_k}."
        raise ApiError(400, message, param="top_k", code="value_out_of_range")
    _at_most("top_k", request.top_k, settings.max_top_k)
    _at_most("max_tokens", request.max_tokens, settings.max_tokens_limit)
    _at_most("max_completion_tokens", getattr(request, "max_completion_tokens", None), settings.max_tokens_limit)


def _at_most(param: str, value: float | None, most: float | None) -> None:
    if value is not None and most is not None and value > most:
        message = f"{param} is {value}; this server takes at most {most}."
        raise ApiError(400, message, param=param, code="value_out_of_range")


def _too_much(param: str, message: str) -> ApiError:
    return ApiError(400, message, param=param, code="request_too_long")
