"""From bytes and times to tokens and waits."""

import json
from collections.abc import Sequence

import pytest

from bench.answers import read
from bench.client import Answer


def answer(events: Sequence[object], status: int = 200, output_len: int = 3) -> Answer:
    """One event each 0.1 s, the first after half a second; it ends with the last."""
    made = Answer(output_len, 10.0, status=status)
    for place, event in enumerate(events):
        data = event if isinstance(event, bytes) else f"data: {json.dumps(event)}\n\n".encode()
        made.note(10.5 + place / 10, data)
    made.ended_s = 10.5 + (len(events) - 1) / 10
    return made


def text(content: str, chat: bool = False, finish: str | None = None) -> dict[str, object]:
    choice = {"delta": {"content": content}} if chat else {"text": content}
    return {"choices": [{**choice, "finish_reason": finish}]}


USAGE = {
    "choices": [],
    "usage": {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}},
}
DONE = b"data: [DONE]\n\n"


@pytest.mark.parametrize("chat", [False, True])
def test_tokens_and_waits(chat: bool) -> None:
    seen = read(answer([text("a", chat), text("b", chat), text("c", chat), USAGE, DONE]))
    assert seen.failure is None
    assert (seen.prompt_tokens, seen.cached_tokens, seen.output_tokens) == (7, 4, 3)
    assert (seen.ttft_s, seen.e2e_s, seen.tpot_s) == pytest.approx((0.5, 0.9, 0.1))
    assert list(seen.gaps_s) == pytest.approx([0.1, 0.1])
    assert not seen.is_short and not seen.is_counted_here


def test_a_role_is_no_token_and_reasoning_is_one() -> None:
    role = {"choices": [{"delta": {"role": "assistant", "content": ""}}]}
    thought = {"choices": [{"delta": {"reasoning_content": "hm"}}]}
    seen = read(answer([role, thought, text("a", chat=True), text("", chat=True, finish="stop"), USAGE, DONE]))
    assert seen.ttft_s == pytest.approx(0.6)
    assert len(seen.gaps_s) == 1


def test_half_a_character_is_a_token_of_a_completion_but_its_end_is_none() -> None:
    seen = read(answer([text("a"), text(""), text("", finish="length"), DONE]))
    assert (seen.output_tokens, seen.is_counted_here, seen.is_short) == (2, True, True)


@pytest.mark.parametrize("cut", [9, -4, -3])  # -3: only the newline is still to come
def test_an_event_counts_at_the_read_that_ends_it(cut: int) -> None:
    whole = f"data: {json.dumps(text('a'))}\r\n\r\n".encode()
    seen = read(answer([whole[:cut], whole[cut:] + whole, USAGE, DONE]))
    assert seen.ttft_s == pytest.approx(0.6)
    assert not seen.gaps_s  # both in one read


def test_an_answer_of_one_token_has_no_time_between_tokens() -> None:
    usage = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 1}}
    assert read(answer([text("a"), usage, DONE])).tpot_s is None


PROBLEM = {"error": {"message": "Slow  down.", "type": "rate_limit_error", "code": "queue_full"}}


@pytest.mark.parametrize(
    ("broken", "name", "detail"),
    [
        (Answer(failure="connection refused"), "connection refused", ""),
        (answer([json.dumps(PROBLEM).encode()], 429), "HTTP 429 queue_full", "Slow down."),
        (answer([b'{"error": "overloaded"}'], 503), "HTTP 503", "overloaded"),
        (answer([b'{"message": "no", "type": "NotFound", "code": 404}'], 404), "HTTP 404 NotFound", "no"),
        (answer([b"<h1>Bad Gateway</h1>"], 502), "HTTP 502", "<h1>Bad Gateway</h1>"),
        (answer([text("a"), PROBLEM, DONE]), "an error within a stream", "Slow  down."),
        (answer([text("a"), USAGE]), "a stream without an end", ""),
        (answer([DONE]), "an answer without a token", ""),
        (answer([b'{"choices": [{"text": "not streamed"}]}']), "an answer without a token", ""),
        (answer([b"data: {broken\n\n"]), "an event that is not as OpenAI's", "malformed"),
    ],
)
def test_failures_have_names(broken: Answer, name: str, detail: str) -> None:
    failure = read(broken).failure
    assert failure and failure.name == name
    assert " ".join(detail.split()) in failure.detail
