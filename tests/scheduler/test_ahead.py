"""One step ahead: a plan is made while the one before it is in flight."""

from collections.abc import Callable

import pytest

from scheduler.simulate import CostModel, Request, Simulation

Sim = Callable[..., Simulation]
Ask = Callable[..., Request]


def launched(sim: Simulation) -> list[tuple[int, int, int]]:
    plan = sim.launch()
    assert plan is not None
    sim.scheduler.check()
    return sim.rows_of(plan)


def test_the_next_position_is_planned_without_its_token(sim: Sim, ask: Ask) -> None:
    world = sim(depth=2)
    world.submit(ask(5))
    assert [launched(world), launched(world)] == [[(0, 0, 5)], [(0, 5, 1)]]
    world.land()
    assert launched(world) == [(0, 6, 1)]
    world.drain()
    assert world.traces[0].tokens == world.model.generate(list(range(100, 105)), ask(5).params, 99)[0]


def test_a_prompt_goes_on_while_its_first_chunk_is_in_flight(sim: Sim, ask: Ask) -> None:
    world = sim(depth=2, max_step_tokens=4)
    world.submit(ask(6))
    assert [launched(world), launched(world)] == [[(0, 0, 4)], [(0, 4, 2)]]


def test_nothing_is_planned_past_a_known_length(sim: Sim, ask: Ask) -> None:
    world = sim(depth=2)
    world.submit(ask(5, max_tokens=1))
    world.launch()
    assert world.launch() is None
    assert [event.finish for event in world.land()] == ["length"]


def test_what_follows_an_unforeseen_stop_is_dropped(sim: Sim, ask: Ask) -> None:
    world = sim(depth=2)
    text, _ = world.model.generate(list(range(100, 105)), ask(5).params, 99)
    world.submit(ask(5, stop_ids=(text[1],)))
    world.launch()
    world.launch()
    world.land()
    world.launch()
    assert [event.finish for event in world.land()] == ["stop"]
    assert world.land() == []
    assert world.traces[0].tokens == text[:2]


def test_blocks_and_slot_of_a_stopped_sequence_wait_for_the_plan_ahead(sim: Sim, ask: Ask) -> None:
    world = sim(depth=2, num_blocks=2 + 2, max_seqs=1)
    text, _ = world.model.generate(list(range(100, 105)), ask(5).params, 99)
    world.submit(ask(5, stop_ids=(text[0],)))
    world.submit(ask([1, 2, 3]))
    world.launch()
    world.launch()
    world.land()
    assert world.pool.fenced == 2
    assert world.launch() is None  # neither slot nor blocks are free yet
    world.land()
    assert launched(world) == [(1, 0, 3)]


def test_a_sequence_aborted_with_two_steps_in_flight_is_dropped_twice(sim: Sim, ask: Ask) -> None:
    world = sim(depth=2)
    world.submit(ask(5))
    world.launch()
    world.launch()
    world.scheduler.abort(0)
    assert [world.land(), world.land()] == [[], []]
    assert world.pool.free == world.pool.usable


def test_a_failed_step_ends_its_sequences_in_the_plan_ahead_too(sim: Sim, ask: Ask) -> None:
    world = sim(depth=2)
    world.submit(ask(5))
    world.launch(crash=True)
    world.submit(ask([1, 2, 3]))
    assert launched(world) == [(0, 5, 1), (1, 0, 3)]
    assert [(event.seq_id, event.finish) for event in world.land()] == [(0, "error")]
    assert [event.seq_id for event in world.land()] == [1]


def test_followers_start_after_the_commit_of_their_leaders_prompt(sim: Sim, ask: Ask) -> None:
    world = sim(depth=2)
    world.submit(ask(9, num_choices=2))
    assert [launched(world), launched(world)] == [[(0, 0, 9)], [(0, 9, 1)]]
    world.land()
    assert launched(world) == [(0, 10, 1), (1, 8, 1)]


def test_a_victim_returns_after_the_commit_of_its_last_token(sim: Sim, ask: Ask) -> None:
    """Three in flight: blocks are free for the victim while its second token is still to come."""
    world = sim(depth=3, num_blocks=2 + 4)
    for first in (10, 20):
        text, _ = world.model.generate([first, 1, 2], ask(1, seed=first // 10 - 1).params, 99)
        world.submit(ask([first, 1, 2], stop_ids=(text[0],)))
    world.submit(ask([30]))
    world.submit(ask([40]))
    world.launch()
    world.scheduler.abort(3)
    assert launched(world) == [(0, 3, 1), (1, 3, 1), (2, 1, 1)]
    assert world.launch() is None  # 0 and 1 need a block each, and only 3 has left one: 2 is preempted
    assert [event.finish for event in world.land()] == ["stop", "stop", None]
    assert world.launch() is None
    world.land()
    assert launched(world) == [(2, 0, 3)]
    world.drain()
    assert world.traces[2].tokens == world.model.generate([30], ask(1, seed=2).params, 99)[0]


def test_a_victim_that_has_returned_publishes_nothing_of_its_old_row(sim: Sim, ask: Ask) -> None:
    world = sim(depth=3, num_blocks=2 + 10, chunk_cap=4)
    for i in range(4):
        text, _ = world.model.generate([i, 1, 2], ask(1, seed=i).params, 99)
        world.submit(ask([i, 1, 2], stop_ids=(text[0],)))
    (gone,) = world.submit(ask([50 + i for i in range(9)]))
    (victim,) = world.submit(ask([70 + i for i in range(9)], priority=1))
    world.submit(ask([90], priority=2))  # waits, so that prompts are cut
    world.launch()
    world.scheduler.abort(gone.id)
    assert launched(world)[-1] == (victim.id, 4, 4)
    assert world.launch() is None  # four need a block, three are on their way: the victim gives up its own
    world.land()
    assert launched(world)[0] == (victim.id, 0, 4)  # in another row, while its old one is in flight
    world.land()
    world.scheduler._hasher.extend(victim, 2)
    assert [world.pool.find(digest) for digest in victim.hashes] == [None, None]
    world.drain()
    assert world.traces[victim.id].tokens == world.model.generate(victim.tokens[:9], victim.params, 99)[0]


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("num_blocks", [10, 14, 60])
def test_the_texts_do_not_depend_on_the_depth(sim: Sim, ask: Ask, depth: int, num_blocks: int) -> None:
    requests = [
        ask([i % 3] * (3 + i), max_tokens=3 + 2 * i, stop_ids=(i, i + 9), at=i * 0.002, num_choices=1 + i % 2)
        for i in range(9)
    ]
    calm = sim(num_blocks=200).run(requests)
    other = sim(num_blocks=num_blocks, depth=depth, max_step_tokens=16).run(requests)
    assert other.texts == calm.texts


def test_planning_ahead_hides_the_time_of_the_host(sim: Sim, ask: Ask) -> None:
    cost = CostModel(base_s=0.010, host_s=0.004)
    requests = [ask(5, max_tokens=20)]
    alone = sim(cost=cost).run(requests).seconds
    ahead = sim(cost=cost, depth=2).run(requests).seconds
    assert alone == pytest.approx(20 * 0.014)
    assert ahead == pytest.approx(0.004 + 20 * 0.010)
