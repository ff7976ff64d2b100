"""Where a grammar ends, and where it cannot be followed: what a commit makes of it."""

from collections.abc import Callable

import msgspec

from scheduler.plan import StepPlan, StepResult
from scheduler.simulate import Request, Simulation


def play(sim: Simulation, plan: StepPlan, **marks: list[int]) -> list[tuple[int, int, str | None]]:
    """(sequence, number of new tokens, finish) of each event, of a step whose result is marked so."""
    result = msgspec.structs.replace(sim.runner.execute(plan) or StepResult([], []), **marks)
    return [(event.seq_id, len(event.tokens), event.finish) for event in sim.scheduler.commit(plan, result)]


def step(sim: Simulation, **marks: list[int]) -> list[tuple[int, int, str | None]]:
    plan = sim.scheduler.plan()
    assert plan is not None
    return play(sim, plan, **marks)


def test_the_end_of_a_grammar_is_a_stop(sim: Callable[..., Simulation], ask: Callable[..., Request]) -> None:
    world = sim()
    for _ in range(3):
        world.submit(ask(4, 9))
    assert step(world, complete=[1]) == [(0, 1, None), (1, 1, "stop"), (2, 1, None)]
    assert step(world, complete=[1]) == [(0, 1, None), (2, 1, "stop")]
    world.scheduler.check()


def test_it_is_a_stop_also_where_the_length_is_used_up(
    sim: Callable[..., Simulation], ask: Callable[..., Request]
) -> None:
    world = sim()
    world.submit(ask(4, 1))
    assert step(world, complete=[0]) == [(0, 1, "stop")]


def test_it_comes_before_min_tokens(sim: Callable[..., Simulation], ask: Callable[..., Request]) -> None:
    world = sim()
    world.submit(ask(4, 9, min_tokens=5, stop_ids=(1,)))
    assert step(world, complete=[0]) == [(0, 1, "stop")]


def test_a_grammar_that_cannot_be_followed_ends_its_row_alone(
    sim: Callable[..., Simulation], ask: Callable[..., Request]
) -> None:
    world = sim()
    for _ in range(3):
        world.submit(ask(4, 9))
    assert step(world, failed=[2]) == [(0, 1, None), (1, 1, None), (2, 0, "grammar")]
    assert step(world, failed=[0]) == [(0, 0, "grammar"), (1, 1, None)]
    assert world.scheduler.stats().failed_steps == 0
    world.scheduler.check()


def test_a_step_planned_ahead_of_the_end_is_dropped(
    sim: Callable[..., Simulation], ask: Callable[..., Request]
) -> None:
    world = sim(depth=2)
    world.submit(ask(4, 9))
    first, ahead = world.scheduler.plan(), world.scheduler.plan()
    assert first is not None
    assert ahead is not None
    assert play(world, first, complete=[0]) == [(0, 1, "stop")]
    assert play(world, ahead) == []
    assert not world.scheduler.has_work


def test_a_toy_grammar_ends_at_its_number(sim: Callable[..., Simulation], ask: Callable[..., Request]) -> None:
    report = sim(num_blocks=20).run([ask(6, 40, grammar="7", num_choices=3)])
    assert {trace.finish for trace in report.traces.values()} == {"stop"}
    assert all([token % 7 == 0 for token in text] == [False] * (len(text) - 1) + [True] for text in report.texts)
