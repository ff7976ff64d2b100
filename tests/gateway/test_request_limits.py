"""The server's own limits of a request: at them is fine, beyond them is a 400 that names the field."""

from dataclasses import dataclass
from typing import Any

import pytest

from gateway.errors import ApiError
from gateway.requests.request_limits import check_messages, check_sampling
from gateway.services import HttpSettings

SMALL = HttpSettings(max_messages=3, max_message_chars=5, max_total_chars=8)
LOW = HttpSettings(max_temperature=1.5, max_top_k=50, max_tokens_limit=100)


@dataclass
class Asked:
    temperature: float | None = None
    top_k: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None


def messages(*contents: str | None) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content} for content in contents]


@pytest.mark.parametrize("contents", [[], ["12345", "123"], ["12345", None, "123"], ["ééééé"]])
def test_messages_at_the_limits_pass(contents: list[str | None]) -> None:
    check_messages(messages(*contents), SMALL)
    check_messages([{"role": "assistant"}], SMALL)


@pytest.mark.parametrize(
    ("contents", "param", "message"),
    [
        (["a"] * 4, "messages", "There are 4 messages; this server takes at most 3."),
        (["a", "123456"], "messages[1]", "Message 1 has 6 characters; this server takes at most 5."),
        (["12345", "1234"], "messages", "The messages have 9 characters; this server takes at most 8 in all."),
    ],
)
def test_messages_beyond_them_do_not(contents: list[str | None], param: str, message: str) -> None:
    with pytest.raises(ApiError) as refused:
        check_messages(messages(*contents), SMALL)
    error = refused.value
    assert (error.status, error.param, error.code, error.message) == (400, param, "request_too_long", message)


def test_reasoning_and_arguments_of_tools_count() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{..}"}}
    message = {"role": "assistant", "content": None, "reasoning_content": "ab", "tool_calls": [call]}
    with pytest.raises(ApiError, match="Message 0 has 6 characters"):
        check_messages([message], SMALL)


@pytest.mark.parametrize("asked", [Asked(), Asked(1.5, 50, 100, 100), Asked(0, 1, 1)])
def test_sampling_at_the_limits_passes(asked: Asked) -> None:
    check_sampling(asked, LOW)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("temperature", 1.6, "temperature is 1.6; this server takes at most 1.5."),
        ("top_k", 51, "top_k is 51; this server takes at most 50."),
        ("top_k", 0, "top_k is 0, which bounds nothing; this server takes 1 to 50."),
        ("top_k", -1, "top_k is -1, which bounds nothing; this server takes 1 to 50."),
        ("max_tokens", 101, "max_tokens is 101; this server takes at most 100."),
        ("max_completion_tokens", 101, "max_completion_tokens is 101; this server takes at most 100."),
    ],
)
def test_sampling_beyond_them_does_not(name: str, value: float, message: str) -> None:
    asked = Asked(**{name: value})  # type: ignore[arg-type]
    with pytest.raises(ApiError) as refused:
        check_sampling(asked, LOW)
    error = refused.value
    assert (error.status, error.param, error.code, error.message) == (400, name, "value_out_of_range", message)


def test_by_default_nothing_usual_is_refused() -> None:
    check_messages(messages(*["a" * 100_000] * 100), HttpSettings())
    check_sampling(Asked(2.0, 100_000, 1_000_000, 1_000_000), HttpSettings())
    check_sampling(Asked(top_k=-1), HttpSettings())
    check_sampling(Asked(top_k=0), HttpSettings())
