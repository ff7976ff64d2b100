"""Grammars on their way into the loop: compiled beside it, once each, in bounded time. The compiler is scripted."""

import threading
from typing import Any

import pytest

from engine.compiling import Compile, CompileLimits, CompileQueue
from engine.loop import Loop
from engine.server import Gone
from scheduler.blocks import BlockPool
from scheduler.protocol import Abort, Accepted, FromEngine, Rejection, Submit, Vocabulary
from scheduler.scheduler import Scheduler
from scheduler.types import Limits, Rejected, SamplingParams
from tests.engine.test_loop import VOCAB, Counting, FakeServer

PATIENCE_S = 60.0
VOCABULARY = Vocabulary([b"a", b"b"], [1], [1])


class AnyText:
    """A matcher that is never used: the runner here is a toy."""


class Server(FakeServer):
    def __init__(self) -> None:
        super().__init__()
        self.woken = threading.Semaphore(0)

    def wake(self) -> None:
        self.woken.release()

    def answers(self, connection: int = 1) -> list[FromEngine]:
        return [message for to, message in self.sent if to == connection and isinstance(message, Accepted | Rejection)]


class World:
    """Grammars that begin with "slow" are compiled once `gate` is open; "bad" ones are refused, "bug" ones crash."""

    def __init__(self, limits: CompileLimits | None = None, taught: bool = True, **sizes: int) -> None:
        self.server, self.runner, self.now = Server(), Counting(), 0.0
        self.gate = threading.Event()
        self.begun = threading.Semaphore(0)
        self.compiled: list[str] = []
        self.grammars = CompileQueue(self.prepare, self.server.wake, lambda: self.now, limits)
        sizes = {"max_seqs": 4, "max_step_tokens": 32, "max_model_len": 64, "block_size": 4, **sizes}
        self.scheduler = Scheduler(Limits(**sizes), BlockPool(40, 4), lambda: self.now)
        server: Any = self.server
        self.loop = Loop(self.scheduler, self.runner, server, VOCAB, self.grammars, lambda: self.now)
        if taught:
            self.server.inbox.append((1, VOCABULARY))  # type: ignore[arg-type]

    def prepare(self, vocabulary: Vocabulary) -> Compile:
        if vocabulary != VOCABULARY:
            raise ValueError("these are not the tokens of the model")
        return self.compile

    def compile(self, grammar: str) -> Any:
        self.compiled.append(grammar)
        self.begun.release()
        if grammar.startswith("slow"):
            assert self.gate.wait(PATIENCE_S)
        if grammar.startswith("bad"):
            raise Rejected("bad_grammar", f"line 1: unknown name {grammar}")
        if grammar.startswith("bug"):
            raise ZeroDivisionError("half of the grammar is missing")
        return AnyText()

    def submit(self, grammar: str | None, *seq_ids: int, connection: int = 1, **more: Any) -> None:
        params = SamplingParams(max_tokens=3, grammar=grammar)
        seeds = [0] * len(seq_ids)
        self.server.inbox.append((connection, Submit(list(seq_ids), [1, 2, 3], params, seeds, **more)))

    def turn(self, count: int = 1) -> None:
        for _ in range(count):
            self.loop.turn()
            self.scheduler.check()

    def compile_one(self) -> None:
        """Waits until one more grammar is compiled, and lets the loop see it."""
        assert self.server.woken.acquire(timeout=PATIENCE_S)
        self.turn()

    def finished(self, connection: int = 1) -> list[int]:
        return [output.seq_id for output in self.server.outputs(connection) if output.finish is not None]


@pytest.fixture
def world() -> Any:
    made: list[World] = []

    def make(*args: Any, **options: Any) -> World:
        made.append(World(*args, **options))
        return made[-1]

    yield make
    for each in made:
        each.gate.set()
        each.grammars.close()


def test_a_submission_enters_once_its_grammar_is_compiled(world: Any) -> None:
    each = world()
    each.submit("slow", 1)
    each.turn()
    assert each.server.answers() == []
    each.gate.set()
    each.compile_one()
    assert each.server.answers() == [Accepted([1])]
    each.turn(3)
    assert each.finished() == [1]


def test_others_go_on_while_a_grammar_is_compiled(world: Any) -> None:
    each = world()
    each.submit("slow", 1)
    each.submit(None, 2)
    each.turn(4)
    assert each.finished() == [2]


def test_a_bad_grammar_is_refused_in_the_compilers_words(world: Any) -> None:
    each = world()
    each.submit("bad", 1, 2)
    each.turn()
    each.compile_one()
    assert each.server.answers() == [Rejection([1, 2], "bad_grammar", "line 1: unknown name bad", None)]
    assert not each.scheduler.has_work


def test_a_compiler_that_crashes_refuses_one_request(world: Any, caplog: pytest.LogCaptureFixture) -> None:
    each = world()
    each.submit("bug", 1)
    each.submit("fine", 2)
    each.turn()
    each.compile_one()
    each.compile_one()
    codes = {answer.seq_ids[0]: getattr(answer, "code", None) for answer in each.server.answers()}
    assert codes == {1: "bad_grammar", 2: None}
    assert "half of the grammar" in caplog.text


def test_without_a_vocabulary_grammars_are_refused(world: Any) -> None:
    each = world(taught=False)
    each.submit("fine", 1)
    each.submit(None, 2)
    each.turn()
    refusal, accepted = each.server.answers()
    assert (refusal.code, accepted) == ("bad_grammar", Accepted([2]))


def test_with_a_vocabulary_of_another_model_too(world: Any) -> None:
    each = world(taught=False)
    each.server.inbox.append((1, Vocabulary([b"x"], [], [0])))
    each.submit("fine", 1)
    each.turn()
    each.compile_one()
    (refusal,) = each.server.answers()
    assert (refusal.code, each.compiled) == ("bad_grammar", [])
    assert "not the tokens of the model" in refusal.message


def test_the_same_grammar_is_compiled_once(world: Any) -> None:
    each = world()
    for seq_id in (1, 2, 3):
        each.submit("slow", seq_id)
    each.turn()
    each.gate.set()
    each.compile_one()
    assert [answer.seq_ids for answer in each.server.answers()] == [[1], [2], [3]]
    each.submit("slow", 4)
    each.turn()
    assert each.server.answers()[-1] == Accepted([4])
    assert each.compiled == ["slow"]


def test_the_least_recently_asked_for_is_forgotten(world: Any) -> None:
    each = world(CompileLimits(max_cached=2))
    for seq_id, grammar in enumerate(["a", "b", "a", "c", "a", "b"]):
        each.submit(grammar, seq_id)
        each.turn()
        if grammar not in each.compiled[:-1] or seq_id == 5:
            each.compile_one()
        each.turn(4)
    assert each.finished() == [0, 1, 2, 3, 4, 5]
    assert each.compiled == ["a", "b", "c", "b"]


def test_a_grammar_that_takes_too_long_is_refused_and_known_later(world: Any) -> None:
    each = world(CompileLimits(seconds=10.0))
    each.submit("slow", 1)
    each.turn()
    assert each.begun.acquire(timeout=PATIENCE_S)
    each.now = 9.9
    each.turn()
    assert each.server.answers() == []
    each.now = 10.0
    each.turn()
    (refusal,) = each.server.answers()
    assert refusal.code == "grammar_timeout"
    each.gate.set()
    each.compile_one()
    each.submit("slow", 2)
    each.turn()
    assert each.server.answers()[1:] == [Accepted([2])]
    assert each.compiled == ["slow"]


def test_what_is_late_before_its_turn_is_not_compiled(world: Any) -> None:
    each = world(CompileLimits(num_threads=1))
    each.submit("slow", 1)
    each.turn()
    assert each.begun.acquire(timeout=PATIENCE_S)
    each.submit("fine", 2)
    each.turn()
    each.now = 10.0
    each.turn()
    slow, never_begun = each.server.answers()
    assert (slow.code, never_begun.code, never_begun.retry_after_s) == ("grammar_timeout", "queue_full", 10.0)
    each.submit("fine", 3)
    each.turn()
    each.gate.set()
    for _ in range(3):  # slow; fine, given up; fine, asked for again
        each.compile_one()
    assert each.server.answers()[-1] == Accepted([3])
    assert each.compiled == ["slow", "fine"]


def test_only_so_many_wait(world: Any) -> None:
    each = world(CompileLimits(max_pending=2))
    for seq_id in (1, 2, 3):
        each.submit("slow", seq_id)
    each.turn()
    (refusal,) = each.server.answers()
    assert (refusal.seq_ids, refusal.code) == ([3], "queue_full")
    assert refusal.retry_after_s is not None


def test_what_is_cancelled_while_compiled_is_never_heard_of(world: Any) -> None:
    each = world()
    each.submit("slow", 1, 2)
    each.submit("slow", 3)
    each.submit("slow", 1, connection=2)
    each.turn()
    each.server.inbox.append((1, Abort([1, 2])))
    each.server.inbox.append((2, Gone()))
    each.turn()
    each.gate.set()
    each.compile_one()
    each.turn(4)
    assert each.server.answers() == [Accepted([3])]
    assert each.server.answers(2) == []
    assert each.finished() == [3]


def test_one_choice_may_be_cancelled_alone(world: Any) -> None:
    each = world()
    each.submit("slow", 1, 2, 3)
    each.turn()
    each.server.during_step = [(1, Abort([1]))]
    each.submit(None, 9)
    each.turn()
    each.gate.set()
    each.compile_one()
    each.turn(5)
    assert sorted(each.finished()) == [2, 3, 9]


def test_a_compiled_grammar_is_held_as_long_as_its_sequences_live(world: Any) -> None:
    each = world()
    each.submit("a", 1, 2)
    each.turn()
    each.compile_one()
    assert len(each.runner.matchers) == 2
    each.turn(3)
    assert sorted(each.finished()) == [1, 2]
    assert len(each.runner.matchers) == 0
    each.submit("a", 3)
    each.turn()
    assert len(each.runner.matchers) == 1
    each.server.inbox.append((1, Abort([3])))
    each.turn()
    assert len(each.runner.matchers) == 0


def test_a_refusal_of_the_scheduler_comes_after_the_compilation(world: Any) -> None:
    each = world(max_model_len=3)
    each.submit("fine", 1)
    each.turn()
    each.compile_one()
    (refusal,) = each.server.answers()
    assert refusal.code == "too_long"
    assert len(each.runner.matchers) == 0


def test_the_wait_for_the_compiler_counts_as_a_wait(world: Any) -> None:
    each = world()
    each.submit("slow", 1, max_wait_s=5.0)
    each.turn()
    each.now = 6.0
    each.gate.set()
    each.compile_one()
    assert [output.finish for output in each.server.outputs(1)] == ["expired"]
