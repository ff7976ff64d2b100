"""Grammars are checked where they can be stopped: by the real compiler, in real processes, off the event loop."""

import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from llguidance import LLMatcher

from gateway.requests.grammar_check import CHILD_COMMAND, CheckLimits, GrammarChecker, TooCostly
from gateway.requests.grammar_child import CHECK, read_frame, write_frame
from gateway.requests.prepare import OFF_LOOP, SHAPED, Workers, cost
from gateway.responses.prepare import response_cost

PATIENCE_S = 60.0
FINE, BAD = 'start: "a"', "start: foo"


def of_schema(schema: Any) -> str:
    return LLMatcher.grammar_from_json_schema(json.dumps(schema))


EXPONENTIAL = of_schema({"allOf": [{"type": "string", "pattern": f"a.{{{length}}}b"} for length in range(1, 28)]})


@pytest.fixture
def checker() -> Iterator[GrammarChecker]:
    each = GrammarChecker(CheckLimits(seconds=0.3, num_children=1))
    yield each
    each.close()


def child_of(checker: GrammarChecker) -> "subprocess.Popen[bytes]":
    return checker._idle[0]._process


def test_a_grammar_is_found_good_or_bad_by_one_lasting_child(checker: GrammarChecker) -> None:
    assert checker.problem(FINE) == ""
    child = child_of(checker)
    assert 'unknown name: "foo"' in checker.problem(BAD)
    assert child_of(checker) is child


def test_what_takes_too_long_is_stopped_and_others_go_on(checker: GrammarChecker) -> None:
    checker.problem(FINE)
    with pytest.raises(TooCostly, match="too long"):
        checker.problem(EXPONENTIAL)
    assert "foo" in checker.problem(BAD)


def test_gbnf_is_translated_lark_kept_and_what_is_neither_refused(checker: GrammarChecker) -> None:
    assert checker.problem(checker.lark('root ::= "yes" | "no"')) == ""
    assert checker.lark(FINE) == FINE
    with pytest.raises(ValueError, match="Expected"):
        checker.lark("neither")


@pytest.mark.parametrize(
    "text",
    ["\n" * 200_000, "root ::= a0\n" + "\n".join(f"a{n} ::= a{n + 1}" for n in range(8000)) + '\na8000 ::= "x"'],
    ids=["lines", "chain"],
)
def test_a_text_that_takes_quadratic_time_to_read_is_stopped(checker: GrammarChecker, text: str) -> None:
    with pytest.raises(TooCostly, match="too long"):
        checker.lark(text)
    assert checker.lark(FINE) == FINE


def test_what_takes_too_much_memory_is_stopped() -> None:
    limits = CheckLimits(seconds=20.0, max_bytes=300 << 20)
    with closing(GrammarChecker(limits)) as checker, pytest.raises(TooCostly, match="too much memory"):
        checker.problem(EXPONENTIAL)


def test_answers_are_remembered_without_their_grammars(checker: GrammarChecker) -> None:
    checker.problem(BAD)
    checker.close()
    assert "foo" in checker.problem(BAD)
    assert checker._idle == []
    assert [len(digest) for digest in checker._known] == [32]


def test_a_child_that_has_died_is_replaced(checker: GrammarChecker) -> None:
    checker.problem(FINE)
    child = child_of(checker)
    child.kill()
    child.wait(PATIENCE_S)
    assert "foo" in checker.problem(BAD)


def test_the_engines_limits_hold() -> None:
    with closing(GrammarChecker(CheckLimits(seconds=20.0))) as checker:
        many = " ".join(f'"{number}"' for number in range(70_000))
        assert "number of symbols" in checker.problem(f"start: {many}")


def test_a_child_ignores_interrupts_and_ends_with_its_input() -> None:
    child = subprocess.Popen([*CHILD_COMMAND, "5", str(1 << 30)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with child:
        assert child.stdin and child.stdout
        write_frame(child.stdin, CHECK + FINE)
        assert read_frame(child.stdout) == ""
        for signum in (signal.SIGINT, signal.SIGTERM):
            os.kill(child.pid, signum)
        write_frame(child.stdin, CHECK + BAD)
        assert "foo" in (read_frame(child.stdout) or "")
        child.stdin.close()
        assert child.wait(PATIENCE_S) == 0


@pytest.mark.parametrize(
    ("body", "threads"),
    [
        (b'{"prompt": "hi"}', None),
        (b'{"prompt": "caf\\u00e9 \\u4f60"}', None),
        (b'{"prompt": "' + b"x" * 2000 + b'"}', "tokenize"),
        (b'{"guided_json": {}}', "shape"),
        (b'{"output_format": {}}', "shape"),
        (b'{"output_config": {"format": {}}}', "shape"),
        (b'{"\\u0072esponse_format": {}}', "shape"),
        (b'{"guided\\u005fjson": {}}', "shape"),
        (b'{"guided\\u005Fjson": {}}', "shape"),
        (b'{"too\\u006Cs": []}', "shape"),
    ],
)
async def test_what_may_need_a_grammar_has_threads_of_its_own(body: bytes, threads: str | None) -> None:
    workers = Workers(1, 512)
    name = await workers.run(cost(body), lambda: threading.current_thread().name)
    workers.close()
    expected = threading.current_thread().name if threads is None else threads
    assert name.startswith(expected)


def test_a_short_response_may_be_long_behind_an_escape_too() -> None:
    assert response_cost(b'{"input": "a"}') < 512
    assert response_cost(b'{"previous_response_id": "a"}') == OFF_LOOP
    assert response_cost(b'{"previous\\u005fresponse_id": "a"}') >= OFF_LOOP
    assert response_cost(b'{"previous_response_id": "a", "tools": []}') == SHAPED
