"""From what came over the wire to figures."""

import json
from collections.abc import Sequence

import pytest

from benchmarks.load import Answer, Workload, figures


def answer(texts: Sequence[str], sent: float = 10.0, tokens: int | None = None, chat: bool = False) -> Answer:
    """A whole stream, one text each 0.1 s, the first after half a second."""
    choices = [{"delta": {"content": text}} if chat else {"text": text} for text in texts]
    usage = {"prompt_tokens": 7, "completion_tokens": len(texts) if tokens is None else tokens}
    events = [*({"choices": [choice]} for choice in choices), {"choices": [], "usage": usage}]
    lines = [f"data: {json.dumps(event)}\n\n".encode() for event in events] + [b"data: [DONE]\n\n"]
    reads = [(sent + 0.5 + 0.1 * place, line) for place, line in enumerate(lines)]
    return Answer(sent, reads, status=200)


@pytest.mark.parametrize("chat", [False, True])
def test_tokens_and_waits_of_whole_answers(chat: bool) -> None:
    got = figures([answer("abc", chat=chat), answer("def", sent=20.0, chat=chat)], 3, wall_s=2.0, client_cpu_s=0.1)
    assert (got.requests, got.failed, got.prompt_tokens, got.output_tokens) == (2, 0, 14, 6)
    assert (got.output_tok_per_s, got.total_tok_per_s) == (3.0, 10.0)
    assert got.ttft_ms == {"p50": 500.0, "p90": 500.0, "p99": 500.0}
    assert got.itl_ms["p50"] == pytest.approx(100.0)


def test_a_role_without_text_is_not_the_first_token() -> None:
    got = figures([answer(["", "a"], tokens=2, chat=True)], 2, wall_s=1.0, client_cpu_s=0.0)
    assert got.ttft_ms["p50"] == pytest.approx(600.0)


def test_an_event_may_come_in_two_reads() -> None:
    (first, data), *others = answer("ab").reads
    cut = Answer(10.0, [(first, data[:9]), (first + 0.05, data[9:]), *others], status=200)
    assert figures([cut], 2, wall_s=1.0, client_cpu_s=0.0).ttft_ms["p50"] == pytest.approx(550.0)


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        (Answer(0.0, [(1.0, b'{"error": "too long"}')], status=400), 'status 400: {"error": "too long"}'),
        (Answer(0.0, [], error="ClientError: gone"), "ClientError: gone"),
        (Answer(0.0, [(1.0, b'data: {"choices": [{"text": "a"}]}\n\n')], status=200), "no text or no usage"),
        (Answer(0.0, [(1.0, b"data: {broken\n\n")], status=200), "an event that is not JSON"),
        (answer("ab"), "2 tokens, not 3"),
    ],
)
def test_failures_are_counted_and_their_tokens_are_not(broken: Answer, told: str) -> None:
    got = figures([answer("abc"), broken], 3, wall_s=1.0, client_cpu_s=0.0)
    assert (got.requests, got.failed, got.output_tokens) == (2, 1, 3)
    assert told in got.first_failure


def test_of_nothing_there_are_no_waits() -> None:
    got = figures([Answer(0.0, status=500)], 3, wall_s=1.0, client_cpu_s=0.0)
    assert (got.ttft_ms, got.itl_ms, got.output_tok_per_s) == ({}, {}, 0.0)


def test_prompts_share_their_prefix_and_nothing_else() -> None:
    work = Workload(2, 2, input_len=5, prefix_len=30, chat=True, seed="x")
    one, other = (json.loads(body)["messages"] for body in work.bodies("m"))
    assert one[0] == other[0]
    assert len(one[0]["content"].split()) == 30
    assert one[1] != other[1]


def test_prompts_are_the_same_for_a_seed_and_differ_between_seeds() -> None:
    assert [*Workload(1, 3, seed="x").bodies("m")] == [*Workload(1, 3, seed="x").bodies("m")]
    assert [*Workload(1, 3, seed="x").bodies("m")] != [*Workload(1, 3, seed="y").bodies("m")]


def test_answers_held_to_a_schema_end_by_themselves() -> None:
    (body,) = Workload(1, 1, schema=True).bodies("m")
    assert "ignore_eos" not in json.loads(body)
    assert json.loads(body)["response_format"]["type"] == "json_schema"
