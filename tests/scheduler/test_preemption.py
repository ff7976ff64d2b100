"""When the blocks run out."""

from collections.abc import Callable

import pytest

from scheduler.simulate import Request, Simulation

Sim = Callable[..., Simulation]
Ask = Callable[..., Request]
LEFT, RIGHT = list(range(8)), list(range(50, 58))


def rows(sim: Simulation) -> list[tuple[int, int, int]]:
    plan = sim.launch()
    assert plan is not None
    rows = sim.rows_of(plan)
    sim.land()
    sim.scheduler.check()
    return rows


@pytest.fixture
def tight(sim: Sim, ask: Ask) -> Simulation:
    """Two sequences have filled the four blocks that there are; both need another one now."""
    world = sim(num_blocks=2 + 4)
    for prompt in (LEFT, RIGHT):
        world.submit(ask(prompt, max_tokens=4))
    assert rows(world) == [(0, 0, 8), (1, 0, 8)]
    return world


def test_the_youngest_of_equals_gives_way(tight: Simulation) -> None:
    assert rows(tight) == [(0, 8, 1)]
    stats = tight.scheduler.stats()
    assert (stats.preemptions, stats.running, stats.waiting) == (1, 1, 1)


def test_the_victim_goes_on_with_its_tokens_and_what_is_left_of_its_blocks(tight: Simulation) -> None:
    assert [rows(tight) for _ in range(3)] == [[(0, 8, 1)], [(0, 9, 1)], [(0, 10, 1)]]
    # One of its two blocks has been evicted; of its 9 tokens, one was generated before.
    assert rows(tight) == [(1, 4, 5)]
    assert tight.scheduler.stats().recomputed_tokens == 4
    tight.drain()
    assert [trace.num_first for trace in tight.traces.values()] == [1, 1]


def test_the_victim_returns_before_those_that_came_after_it(tight: Simulation, ask: Ask) -> None:
    tight.submit(ask([90]))
    assert [rows(tight) for _ in range(3)] == [[(0, 8, 1)], [(0, 9, 1)], [(0, 10, 1)]]
    assert rows(tight) == [(1, 4, 5), (2, 0, 1)]


def test_a_plan_that_preempts_admits_nobody(tight: Simulation, ask: Ask) -> None:
    tight.submit(ask([90], priority=-1))  # ahead of the victim, and the victim leaves a block for it
    assert rows(tight) == [(0, 8, 1)]
    assert rows(tight) == [(0, 9, 1), (2, 0, 1)]


def test_the_lowest_priority_gives_way_though_it_is_older_and_has_done_more(sim: Sim, ask: Ask) -> None:
    world = sim(num_blocks=2 + 6)
    world.submit(ask(list(range(16)), max_tokens=9, priority=1))
    rows(world)
    world.submit(ask([50], max_tokens=9))
    for position in range(4):
        assert rows(world)[-1] == (1, position, 1)
    assert rows(world) == [(1, 4, 1)]


def test_whoever_needs_the_block_may_be_the_victim_itself(sim: Sim, ask: Ask) -> None:
    world = sim(num_blocks=2 + 4)
    world.submit(ask(list(range(10)), max_tokens=2))
    world.submit(ask([50, 51, 52, 53], max_tokens=9))
    assert rows(world) == [(0, 0, 10), (1, 0, 4)]
    assert rows(world) == [(0, 10, 1)]


def test_the_texts_do_not_change(sim: Sim, ask: Ask) -> None:
    requests = [ask([10 * i, 1, 2, 3, 4], max_tokens=20) for i in range(8)]
    calm = sim(num_blocks=400).run(requests)
    tight = sim(num_blocks=16).run(requests)
    assert (calm.stats.preemptions, tight.stats.preemptions > 0) == (0, True)
    assert tight.texts == calm.texts


def test_a_victim_with_a_token_in_flight_still_says_it(sim: Sim, ask: Ask) -> None:
    world = sim(num_blocks=2 + 4, depth=2)
    for prompt in (LEFT, RIGHT):
        world.submit(ask(prompt, max_tokens=4))
    world.launch()
    assert world.launch() is None  # 1 is preempted, but its blocks are fenced: 0 has to wait for one
    assert world.scheduler.stats().preemptions == 1
    assert [event.seq_id for event in world.land()] == [0, 1]
    assert rows(world) == [(0, 8, 1)]
    world.drain()
    assert [len(trace.tokens) for trace in world.traces.values()] == [4, 4]


def test_a_victim_may_end_with_its_token_in_flight(sim: Sim, ask: Ask) -> None:
    world = sim(num_blocks=2 + 4, depth=2)
    text, _ = world.model.generate(RIGHT, ask(1, seed=1).params, 99)
    world.submit(ask(LEFT))
    world.submit(ask(RIGHT, stop_ids=(text[0],)))
    world.launch()
    world.launch()
    assert [event.finish for event in world.land()] == [None, "stop"]
    assert len(world.scheduler._queue) == 0
    world.scheduler.check()


def test_fenced_blocks_on_their_way_prevent_a_second_preemption(sim: Sim, ask: Ask) -> None:
    world = sim(num_blocks=2 + 6, depth=2)
    for prompt in (LEFT, RIGHT, [90, 91, 92, 93, 94, 95, 96]):
        world.submit(ask(prompt))
    world.launch()
    # The third is preempted for the first two; asked again, the plan only waits.
    assert world.launch() is None
    assert world.launch() is None
    assert world.scheduler.stats().preemptions == 1
    world.land()
    assert [seq_id for seq_id, _, _ in rows(world)] == [0, 1]
