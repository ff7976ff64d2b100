"""What a slow gateway has not taken is merged: nothing is lost, doubled or out of order."""

import random

from engine.backlog import MOST, Backlog
from scheduler.plan import TokenLogprob
from scheduler.protocol import EngineStats, FirstToken, Output, Outputs, StepRecord


def stats(steps: int) -> EngineStats:
    return EngineStats(1, 0, 0, 8, 0, 100, steps, 0, 0, 0, 0, 0)


def record(num: int) -> StepRecord:
    return StepRecord("decode", num, num, 0.001)


def test_an_empty_one_has_nothing() -> None:
    backlog = Backlog()
    assert backlog.take() is None
    backlog.add(Outputs([], [], stats(1)))
    assert backlog.take() == Outputs([], [], stats(1))
    assert backlog.take() is None


def test_steps_become_one() -> None:
    backlog = Backlog()
    first = FirstToken(0.1, 0.2, 3)
    logprob, other = TokenLogprob(-1.0, [1], [-1.0]), TokenLogprob(-2.0, [2], [-2.0])
    backlog.add(Outputs([Output(1, [10], None, [logprob], first), Output(2, [20], None)], [record(2)], stats(1)))
    backlog.add(Outputs([Output(2, [21, 22], "length"), Output(1, [11], None, [other])], [record(2)], stats(2)))
    backlog.add(Outputs([Output(3, [30], None, None, first), Output(1, [12], "stop")], [record(3)], stats(3)))
    assert backlog.take() == Outputs(
        [
            Output(1, [10, 11, 12], "stop", [logprob, other], first),
            Output(2, [20, 21, 22], "length"),
            Output(3, [30], None, None, first),
        ],
        [record(2), record(2), record(3)],
        stats(3),
    )
    assert backlog.take() is None


def test_messages_are_left_as_they_were() -> None:
    output = Output(1, [10], None)
    backlog = Backlog()
    backlog.add(Outputs([output], [], stats(1)))
    backlog.add(Outputs([Output(1, [11], None)], [], stats(2)))
    backlog.take()
    assert output == Output(1, [10], None)


def test_it_is_full_long_before_a_frame_is_too_large() -> None:
    backlog = Backlog()
    many = TokenLogprob(-1.0, list(range(20)), [-1.0] * 20)
    while not backlog.is_full:
        backlog.add(Outputs([Output(1, [1] * 100, None, [many] * 100)], [record(1)], stats(1)))
    taken = backlog.take()
    assert taken is not None and 20 * len(taken.outputs[0].tokens) <= 2 * MOST
    assert not backlog.is_full


def test_whatever_the_order_each_sequence_gets_its_tokens() -> None:
    rng = random.Random(0)
    backlog, sent, got = Backlog(), {id: list[int]() for id in range(8)}, {id: list[int]() for id in range(8)}
    for step in range(500):
        outputs = [Output(id, [rng.randrange(1000) for _ in range(rng.randrange(1, 4))], None) for id in range(8)]
        chosen = [output for output in outputs if rng.random() < 0.6]
        for output in chosen:
            sent[output.seq_id] += output.tokens
        backlog.add(Outputs(chosen, [record(len(chosen))], stats(step)))
        if rng.random() < 0.2 and (taken := backlog.take()) is not None:
            for output in taken.outputs:
                got[output.seq_id] += output.tokens
    for output in (backlog.take() or Outputs([], [], stats(0))).outputs:
        got[output.seq_id] += output.tokens
    assert got == sent
