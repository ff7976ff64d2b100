"""What is asked about a prompt itself: nothing generated, no hits, told once."""

from collections.abc import Callable

import pytest

from scheduler.plan import Event
from scheduler.simulate import Request, Simulation
from scheduler.types import Rejected

Sim = Callable[..., Simulation]
Ask = Callable[..., Request]


def step(sim: Simulation) -> tuple[list[tuple[int, int, int]], list[Event]]:
    plan = sim.launch()
    assert plan is not None
    rows = sim.rows_of(plan)
    events = sim.land()
    sim.scheduler.check()
    return rows, events


def told(sim: Simulation, seq_id: int) -> bool:
    """The sequence was told of every token of its prompt."""
    trace = sim.traces[seq_id]
    return trace.prompt is not None and trace.prompt == sim.model.read(trace.request.prompt, trace.request.params)


# --- max_tokens 0 ---


def test_without_tokens_the_end_of_the_prompt_is_the_end(sim: Sim, ask: Ask) -> None:
    world = sim(max_step_tokens=4)
    world.submit(ask(6, max_tokens=0, stop_ids=(105,)))
    assert step(world) == ([(0, 0, 4)], [])
    world.clock.now = 5.0
    rows, [event] = step(world)
    assert rows == [(0, 4, 2)]
    assert (event.tokens, event.logprobs, event.finish, event.first) == ([], None, "length", True)
    assert event.prefill_s > 5.0
    assert not world.scheduler.has_work


def test_a_last_chunk_of_one_token_is_computed(sim: Sim, ask: Ask) -> None:
    world = sim(max_step_tokens=4)
    world.submit(ask(5, max_tokens=0))
    assert [step(world)[0] for _ in range(2)] == [[(0, 0, 4)], [(0, 4, 1)]]
    assert world.traces[0].finish == "length"


def test_nothing_is_planned_behind_the_prompt_in_flight(sim: Sim, ask: Ask) -> None:
    world = sim(depth=2)
    world.submit(ask(8, max_tokens=0))
    assert world.launch() is not None
    assert world.launch() is None
    world.drain()
    assert (world.traces[0].tokens, world.traces[0].finish) == ([], "length")


def test_a_prompt_that_is_only_scored_may_fill_the_context(sim: Sim, ask: Ask) -> None:
    world = sim(max_model_len=20)
    world.submit(ask(20, max_tokens=0, prompt_logprobs=1))
    with pytest.raises(Rejected, match="context holds 20"):
        world.submit(ask(21, max_tokens=0))
    world.drain()
    assert told(world, 0)


def test_a_prompt_that_is_only_scored_may_fill_the_cache(sim: Sim, ask: Ask) -> None:
    world = sim(num_blocks=2 + 3)
    world.submit(ask(12, max_tokens=0))
    with pytest.raises(Rejected, match="cache holds 12"):
        world.submit(ask(13, max_tokens=0))
    world.drain()
    assert world.traces[0].finish == "length"


def test_what_was_computed_is_found_by_others(sim: Sim, ask: Ask) -> None:
    world = sim()
    world.submit(ask(9, max_tokens=0))
    world.drain()
    world.submit(ask(9))
    assert step(world)[0] == [(1, 8, 1)]


# --- the prompt's own numbers ---


@pytest.mark.parametrize("wish", [{"prompt_logprobs": 0}, {"embed": True}], ids=str)
def test_a_prompt_that_is_read_is_computed_whole_and_still_serves_others(
    sim: Sim, ask: Ask, wish: dict[str, int]
) -> None:
    world = sim()
    world.submit(ask(10))
    world.drain()
    world.submit(ask(10, **wish))
    assert step(world)[0] == [(1, 0, 10)]
    world.submit(ask(10))
    assert step(world)[0] == [(1, 10, 1), (2, 8, 2)]
    assert told(world, 1)
    stats = world.scheduler.stats()
    assert (stats.prefix_queries, stats.prefix_hits) == (20, 8)  # the one that looked for nothing missed nothing


def test_it_is_told_with_the_first_token_only(sim: Sim, ask: Ask) -> None:
    world = sim(max_step_tokens=4)
    world.submit(ask(6, max_tokens=3, prompt_logprobs=2))
    prompts = [event.prompt is not None for _ in range(4) for event in step(world)[1]]
    assert prompts == [True, False, False]


def test_of_several_choices_the_leader_is_told(sim: Sim, ask: Ask) -> None:
    world = sim(max_step_tokens=8)
    world.submit(ask(14, num_choices=3, prompt_logprobs=1))
    step(world)
    step(world)
    assert step(world)[0] == [(0, 14, 1), (1, 12, 2), (2, 12, 2)]
    assert [trace.prompt is not None for trace in world.traces.values()] == [True, False, False]


def test_neighbours_that_asked_for_nothing_are_told_nothing(sim: Sim, ask: Ask) -> None:
    world = sim()
    world.submit(ask(5))
    world.submit(ask(6, prompt_logprobs=1))
    world.submit(ask(7))
    world.drain()
    assert [trace.prompt is not None for trace in world.traces.values()] == [False, True, False]
    assert told(world, 1)


def test_a_prompt_preempted_half_way_is_read_from_its_start_again(sim: Sim, ask: Ask) -> None:
    world = sim(num_blocks=2 + 7, max_step_tokens=8)
    world.submit(ask([7, 8, 9], max_tokens=20))
    step(world)
    step(world)
    world.submit(ask(20, priority=1, prompt_logprobs=1))
    while not world.scheduler.stats().preemptions:
        rows, _ = step(world)
    assert rows == [(0, 8, 1)]  # the other was 16 tokens into its prompt
    while world.traces[1].prompt is None:
        rows, _ = step(world)
    assert world.scheduler.stats().recomputed_tokens == 16
    world.drain()
    assert told(world, 1)


def test_once_told_a_preempted_sequence_takes_hits(sim: Sim, ask: Ask) -> None:
    world = sim(num_blocks=2 + 4)
    for first in (0, 50):
        world.submit(ask(list(range(first, first + 8)), max_tokens=4, prompt_logprobs=1))
    assert [step(world)[0] for _ in range(4)] == [[(0, 0, 8), (1, 0, 8)], [(0, 8, 1)], [(0, 9, 1)], [(0, 10, 1)]]
    assert step(world)[0] == [(1, 4, 5)]  # one of its blocks is left
    world.drain()
    assert told(world, 0)
    assert told(world, 1)
