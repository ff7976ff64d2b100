"""Ratios and verdicts from rounds that are made up."""

from dataclasses import replace

import pytest

from benchmarks.cpu_cases import Case
from benchmarks.cpu_table import Line, Visit, lines, measured_table, needs_table, ready_s
from benchmarks.load import Figures, Workload

CASE = Case("c8", "8 streams", Workload(8, 32), needed=1.5)


def figures(tok_per_s: float, ttft: float = 100.0, failed: int = 0, total: float = 0.0) -> Figures:
    waits = {"p50": ttft / 2, "p90": ttft, "p99": ttft} if tok_per_s else {}
    told = "status 400: too long" if failed else ""
    return Figures(32, failed, told, 0, 0, 0, 1.0, 0.0, tok_per_s, total, waits, waits)


def visit(turn: int, server: str, run: Figures, ready: float = 5.0) -> Visit:
    return Visit(turn, server, ready, runs={"c8": run})


def line(visits: list[Visit], what: str, case: Case = CASE) -> Line:
    (found,) = (each for each in lines(visits, [case]) if what in each.what)
    return found


def test_the_ratio_is_the_median_of_rounds_each_beside_its_own() -> None:
    speeds = [(100.0, 50.0), (10.0, 10.0), (300.0, 100.0)]  # a machine that changes: 2, 1, 3
    visits = [
        visit(turn, server, figures(speed))
        for turn, pair in enumerate(speeds, start=1)
        for server, speed in zip(("headrace", "llama"), pair, strict=True)
    ]
    found = line(visits, "out tok/s")
    assert (found.ours, found.theirs, found.value, found.held) == (100.0, 50.0, 2.0, True)


def test_the_best_peer_is_another_for_speed_than_for_ttft() -> None:
    visits = [
        visit(1, "headrace", figures(150.0, ttft=90.0)),
        visit(1, "llama", figures(50.0, ttft=80.0)),
        visit(1, "vllm", figures(120.0, ttft=200.0)),
    ]
    speed, ttft = line(visits, "out tok/s"), line(visits, "TTFT")
    assert (speed.peer, speed.value, speed.held) == ("vllm", 1.25, False)
    assert (ttft.peer, ttft.value, ttft.held) == ("llama", 1.125, False)


@pytest.mark.parametrize(("value", "held"), [(1.4999, False), (1.5, True)])
def test_a_need_is_held_from_its_bound_on(value: float, held: bool) -> None:
    assert Line("x", value, "llama", 1.0, value, 1.5, at_most=False).held is held
    assert Line("x", value, "llama", 1.0, value, 1.4999, at_most=True).held is not held


def test_prompts_count_where_the_case_says_so() -> None:
    case = replace(CASE, total=True)
    visits = [visit(1, "headrace", figures(1.0, total=300.0)), visit(1, "llama", figures(9.0, total=200.0))]
    assert line(visits, "total tok/s", case).value == 1.5


def test_without_peers_there_is_no_verdict_but_on_the_start() -> None:
    found = lines([visit(1, "headrace", figures(100.0))], [CASE])
    assert [each.verdict for each in found] == ["not known", "not known", "held"]


def test_failing_holds_no_need() -> None:
    visits = [visit(1, "headrace", figures(900.0, failed=2)), visit(1, "llama", figures(100.0, failed=1))]
    assert line(visits, "out tok/s").verdict == "MISSED, 2 of ours failed, 1 of theirs failed"


def test_a_server_that_did_not_start_holds_no_need() -> None:
    visits = [Visit(1, "headrace", error="ended with code 1"), visit(1, "llama", figures(100.0))]
    assert {each.held for each in lines(visits, [CASE])} == {False}


def test_a_peer_that_answers_nothing_is_nobodys_best() -> None:
    visits = [
        visit(1, "headrace", figures(150.0)),
        visit(1, "llama", figures(0.0, failed=32)),
        visit(1, "vllm", figures(100.0)),
    ]
    assert (line(visits, "out tok/s").peer, line(visits, "TTFT").peer) == ("vllm", "vllm")


def test_the_first_start_counts_only_where_it_is_the_only_one() -> None:
    visits = [visit(turn, "headrace", figures(1.0), took) for turn, took in enumerate((30.0, 5.0, 7.0), start=1)]
    assert ready_s(visits, "headrace") == 6.0
    assert ready_s(visits[:1], "headrace") == 30.0
    assert ready_s(visits, "llama") is None


def test_cases_that_need_nothing_have_figures_and_no_verdict() -> None:
    case = replace(CASE, needed=None)
    visits = [visit(1, "headrace", figures(123.4))]
    assert len(lines(visits, [case])) == 1  # the start
    assert "123.4" in measured_table(visits, [case])


def test_tables_show_what_failed() -> None:
    visits = [visit(1, "headrace", figures(150.0)), visit(1, "llama", figures(0.0, failed=32))]
    shown = measured_table(visits, [CASE])
    assert "32/32" in shown
    assert "llama, c8: status 400: too long" in shown
    assert "8 streams: out tok/s" in needs_table(lines(visits, [CASE]))
