"""Figures of requests whose waits are known."""

from array import array

import pytest

from bench.answers import Failure, Seen
from bench.measure import MAX_KINDS, SLO, Round, Spread, failures, figures

NONE = Spread(None, None, None, None)


def seen(ttft_s: float, tpot_s: float | None = 0.01, tokens: int = 10) -> Seen:
    return Seen(None, ttft_s, ttft_s + 1, tpot_s, array("d", [0.01] * 9), prompt_tokens=5, output_tokens=tokens)


def failed(name: str, detail: str = "") -> Seen:
    return Seen(Failure(name, detail))


def test_quantiles_are_values_that_were() -> None:
    assert Spread.of(n / 1000 for n in range(100, 0, -1)) == Spread(51.0, 91.0, 100.0, 50.5)
    assert Spread.of([0.25]) == Spread(250.0, 250.0, 250.0, 250.0)
    assert Spread.of([None]) == NONE


def test_rates_are_of_answered_requests_over_the_time_of_all_rounds() -> None:
    rounds = [Round([seen(0.1), seen(0.2), failed("x")], 2.0, 0.5), Round([seen(0.3)], 2.0, 0.1, cut_off=1)]
    got = figures(rounds, SLO())
    assert (got.requests, got.answered, got.cut_off) == (4, 3, 1)
    assert (got.requests_per_s, got.output_tok_per_s, got.total_tok_per_s) == (0.75, 7.5, 11.25)
    assert (got.ttft_ms.p50, got.e2e_ms.p99, got.itl_ms.mean) == (200.0, 1300.0, 10.0)
    assert got.client_busy == 0.15
    assert got.good_requests_per_s is None


@pytest.mark.parametrize(
    ("slo", "good"),
    [
        (SLO(ttft=200), 2),
        (SLO(ttft=199.9), 1),
        (SLO(tpot=10), 3),  # an answer of one token keeps to it
        (SLO(tpot=9), 1),
        (SLO(e2e=1200, ttft=100), 1),
        (SLO(ttft=1), 0),
    ],
)
def test_goodput_counts_requests_that_keep_to_all_bounds(slo: SLO, good: int) -> None:
    rounds = [Round([seen(0.1), seen(0.2), seen(0.3, tpot_s=None), failed("x")], 2.0, 0.0)]
    assert figures(rounds, slo).good_requests_per_s == good / 2


def test_failures_are_counted_by_kind_with_an_example_of_each() -> None:
    got = failures([failed("a", "first"), failed("b"), failed("a", "second"), seen(0.1)])
    assert [(each.name, each.count, each.example) for each in got] == [("a", 2, "first"), ("b", 1, "")]
    many = failures([failed(f"kind {n}") for n in range(MAX_KINDS + 5)])
    assert (len(many), many[-1].name, many[-1].count) == (MAX_KINDS + 1, "others", 5)


def test_of_nothing_there_are_no_waits() -> None:
    got = figures([Round([failed("x")], 1.0, 0.0)], SLO(ttft=1))
    assert (got.ttft_ms, got.itl_ms, got.output_tok_per_s, got.good_requests_per_s) == (NONE, NONE, 0.0, 0.0)
