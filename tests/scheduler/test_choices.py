"""n > 1: several sequences with one prompt."""

from collections.abc import Callable

import pytest

from scheduler.simulate import Request, Simulation

Sim = Callable[..., Simulation]
Ask = Callable[..., Request]


def rows(sim: Simulation) -> list[tuple[int, int, int]]:
    plan = sim.launch()
    assert plan is not None
    rows = sim.rows_of(plan)
    sim.land()
    sim.scheduler.check()
    return rows


@pytest.mark.parametrize("prefix_caching", [True, False])
def test_followers_wait_for_their_leader_and_share_its_full_blocks(sim: Sim, ask: Ask, prefix_caching: bool) -> None:
    world = sim(max_step_tokens=8, prefix_caching=prefix_caching)
    seqs = world.submit(ask(14, num_choices=3))
    assert rows(world) == [(0, 0, 8)]
    assert rows(world) == [(0, 8, 6)]
    assert rows(world) == [(0, 14, 1), (1, 12, 2), (2, 12, 2)]  # the partial tail is recomputed
    assert {tuple(seq.blocks[:3]) for seq in seqs} == {tuple(seqs[0].blocks[:3])}
    assert len({seq.blocks[3] for seq in seqs}) == 3
    world.drain()
    assert len({tuple(text.tokens) for text in world.traces.values()}) == 3  # each has a seed of its own


def test_without_prefix_caching_other_requests_share_nothing(sim: Sim, ask: Ask) -> None:
    world = sim(prefix_caching=False)
    world.submit(ask(14, num_choices=2))
    world.drain()
    world.submit(ask(14, num_choices=2))
    assert rows(world) == [(2, 0, 14)]


def test_a_waiting_follower_does_not_block_the_queue(sim: Sim, ask: Ask) -> None:
    world = sim(max_step_tokens=8)
    world.submit(ask(12, num_choices=2))
    world.submit(ask(list(range(3))))
    rows(world)
    assert rows(world) == [(0, 8, 4), (2, 0, 3)]
    assert rows(world) == [(0, 12, 1), (2, 3, 1), (1, 8, 4)]


def test_a_follower_keeps_its_place_before_later_requests(sim: Sim, ask: Ask) -> None:
    world = sim(max_seqs=2, max_step_tokens=8)
    world.submit(ask(12, num_choices=2, max_tokens=9))
    world.submit(ask(list(range(40, 42)), max_tokens=1))
    world.submit(ask(list(range(50, 52))))
    rows(world)
    assert rows(world) == [(0, 8, 4), (2, 0, 2)]
    assert rows(world) == [(0, 12, 1), (1, 8, 4)]


def leaderless(world: Simulation) -> None:
    """The two followers end as they should, by themselves."""
    world.drain()
    world.scheduler.check()
    assert [world.traces[i].finish for i in (1, 2)] == ["length", "length"]


def test_followers_go_on_when_their_leader_is_aborted_in_the_queue(sim: Sim, ask: Ask) -> None:
    world = sim()
    world.submit(ask(9, num_choices=3))
    world.scheduler.abort(0)
    assert rows(world)[0] == (1, 0, 9)
    leaderless(world)


@pytest.mark.parametrize("in_flight", [False, True])
def test_followers_go_on_when_their_leader_is_aborted_in_its_prompt(sim: Sim, ask: Ask, in_flight: bool) -> None:
    world = sim(max_step_tokens=4)
    world.submit(ask(9, num_choices=3))
    rows(world)
    if in_flight:
        world.launch()
    world.scheduler.abort(0)
    leaderless(world)
    assert world.traces[1].cached_tokens == 4  # what was committed before the abort


def test_followers_go_on_when_their_leaders_step_fails(sim: Sim, ask: Ask) -> None:
    world = sim()
    world.submit(ask(9, num_choices=3))
    world.launch(crash=True)
    assert [event.seq_id for event in world.land()] == [0]
    leaderless(world)


def test_followers_go_on_when_their_leader_ends_with_its_first_token(sim: Sim, ask: Ask) -> None:
    world = sim()
    world.submit(ask(9, num_choices=3, max_tokens=1))
    leaderless(world)
    assert [trace.cached_tokens for trace in world.traces.values()] == [0, 8, 8]


def test_followers_wait_on_when_their_leader_is_preempted_in_its_prompt(sim: Sim, ask: Ask) -> None:
    world = sim(num_blocks=2 + 7, max_step_tokens=8)
    world.submit(ask([7, 8, 9], max_tokens=20))
    rows(world)
    rows(world)
    world.submit(ask(20, num_choices=3, priority=1))
    assert [rows(world)[-1] for _ in range(4)] == [(1, 0, 4), (1, 4, 4), (1, 8, 4), (1, 12, 4)]
    assert world.scheduler._queue.num_parked == 2
    assert rows(world) == [(0, 8, 1)]
    assert world.scheduler._queue.num_parked == 2
    leaderless(world)
    assert world.traces[0].finish == "length"


def test_no_follower_overtakes_a_leader_that_reads_its_prompt(sim: Sim, ask: Ask) -> None:
    """The prompt is in the cache. Once preempted, the leader computes it anew, where the others would find it."""
    world = sim(num_blocks=2 + 6, max_step_tokens=12, chunk_cap=4)
    world.submit(ask(16, max_tokens=1))
    world.drain()
    world.submit(ask(list(range(7)), max_tokens=20))
    rows(world)
    seqs = world.submit(ask(16, num_choices=2, prompt_logprobs=1, priority=1))
    told: list[int] = []
    while world.scheduler.has_work:
        told += [event.seq_id for event in world.turn() if event.first]
    assert seqs[0].preemptions > 0
    assert told[-2:] == [seq.id for seq in seqs]


def test_a_follower_can_be_aborted_while_it_waits(sim: Sim, ask: Ask) -> None:
    world = sim()
    world.submit(ask(9, num_choices=3))
    world.scheduler.abort(1)
    world.drain()
    assert [world.traces[i].finish for i in range(3)] == ["length", None, "length"]


def test_a_request_expires_as_a_whole_or_not_at_all(sim: Sim, ask: Ask) -> None:
    world = sim(max_step_tokens=4)
    world.submit(ask(9, num_choices=3, max_wait_s=1.0))
    world.submit(ask(list(range(60, 64)), num_choices=2, max_wait_s=1.0))
    rows(world)
    world.clock.now = 2.0
    assert sorted((event.seq_id, event.finish) for event in world.expire()) == [(3, "expired"), (4, "expired")]
    leaderless(world)
