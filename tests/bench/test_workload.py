"""Requests by a seed, of exact lengths."""

import json
from typing import Any

import pytest

from bench.arrivals import Closed, Entry, Load, Open, Replay
from bench.words import WORDS, single_tokens
from bench.workload import Author, Span, Workload

ONE = Closed(1)


def bodies(load: Load = ONE, num: int = 20, name: str = "A", seed: int = 1, part: str = "x", **work: Any) -> list[Any]:
    settings = {"chat": False, "input_len": Span(5, 5), "output_len": Span(9, 9), **work}
    author = Author(Workload(**settings), "m", WORDS, seed, name)
    return [json.loads(ask.body) for ask in author.asks(load, num, part)]


def lengths(made: list[Any]) -> list[tuple[int, int]]:
    return [(len(body["prompt"].split()), body["max_tokens"]) for body in made]


def test_a_seed_gives_the_same_requests_and_each_part_its_own() -> None:
    assert bodies() == bodies()
    assert bodies() != bodies(seed=2)
    prompts = [body["prompt"] for body in bodies() + bodies(part="y")]
    assert len(set(prompts)) == len(prompts) == 40


def test_two_servers_get_the_same_lengths_in_other_words() -> None:
    span: dict[str, Any] = {"input_len": Span(1, 50), "output_len": Span(1, 50)}
    one, other = bodies(**span), bodies(name="B", **span)
    assert lengths(one) == lengths(other)
    assert all(mine["prompt"] != others["prompt"] for mine, others in zip(one, other, strict=True))


def test_lengths_are_exact_or_anywhere_between_two() -> None:
    assert lengths(bodies()) == [(5, 9)] * 20
    drawn = lengths(bodies(num=300, input_len=Span(2, 4)))
    assert {num for num, _ in drawn} == {2, 3, 4}


def test_a_prefix_is_shared_by_all_parts_and_nothing_else_is() -> None:
    one, other = (bodies(chat=True, shared_prefix=30, part=part)[0]["messages"] for part in "xy")
    assert one[0] == other[0]
    assert one[0]["role"] == "system" and len(one[0]["content"].split()) == 30
    assert one[1] != other[1] and len(one[1]["content"].split()) == 5
    assert lengths(bodies(shared_prefix=30)) == [(35, 9)] * 20


def test_a_trace_sets_lengths_and_moments() -> None:
    load = Replay((Entry(0.0, 3, 1), Entry(4.0, 7, 2)), speed=2.0)
    author = Author(Workload(False, Span(5, 5), Span(9, 9)), "m", WORDS, 1, "A")
    asks = list(author.asks(load, 5, "x"))
    assert [(ask.at_s, ask.output_len) for ask in asks] == [(0.0, 1), (2.0, 2)]
    assert lengths([json.loads(ask.body) for ask in asks]) == [(3, 1), (7, 2)]


def test_moments_do_not_depend_on_the_server() -> None:
    load = Open(3.0)
    moments = [
        [ask.at_s for ask in Author(Workload(False, Span(1, 9), Span(1, 9)), "m", WORDS, 1, name).asks(load, 9, "x")]
        for name in "AB"
    ]
    assert moments[0] == moments[1] and moments[0][-1] > 0


def test_the_extra_body_is_merged_and_null_takes_out() -> None:
    body = bodies(num=1, extra={"temperature": 1, "max_tokens": None})[0]
    assert body["temperature"] == 1 and "max_tokens" not in body and body["ignore_eos"]
    assert "ignore_eos" not in bodies(num=1, ignore_eos=False)[0]


class Counting:
    """A tokenizer to which `long` words are two tokens."""

    def __init__(self, *long: str) -> None:
        self.long = set(long)
        self.asked = 0

    async def count(self, text: str) -> int:
        self.asked += 1
        return sum(2 if word in self.long else 1 for word in text.split()) + text.count("\n")


async def test_words_of_more_than_one_token_are_left_out() -> None:
    counting = Counting("house", "problem")
    assert await single_tokens(counting.count) == [word for word in WORDS if word not in counting.long]
    assert counting.asked < 100


async def test_two_questions_are_enough_where_all_words_are_one_token() -> None:
    counting = Counting()
    assert await single_tokens(counting.count) == WORDS
    assert counting.asked == 2


def test_no_word_is_there_twice() -> None:
    assert len(set(WORDS)) == len(WORDS)


@pytest.mark.parametrize(("span", "shown"), [(Span(5, 5), "5"), (Span(1, 9), "1:9")])
def test_spans_are_shown_as_they_are_written(span: Span, shown: str) -> None:
    assert str(span) == shown
