"""Sequences that come with what they have generated on an engine that is gone."""

from collections.abc import Callable

import pytest

from scheduler.simulate import Request, Simulation
from scheduler.types import Sequence

Sim = Callable[..., Simulation]
Ask = Callable[..., Request]
STOP = tuple(range(8))


def played(world: Simulation, seqs: list[Sequence], num_tokens: int) -> list[Sequence]:
    """Until the first has so many; those that have not ended then."""
    while seqs[0].finish is None and len(world.traces[seqs[0].id].tokens) < num_tokens:
        world.turn()
    return [seq for seq in seqs if seq.finish is None]


@pytest.mark.parametrize("options", [{}, {"min_tokens": 12, "stop_ids": STOP}, {"grammar": "7"}])
@pytest.mark.parametrize("cut", range(0, 20, 3))
def test_a_sequence_says_the_same_wherever_it_was_cut(sim: Sim, ask: Ask, cut: int, options: dict[str, object]) -> None:
    """max_tokens, min_tokens, stop ids and the grammar count what it has generated; and its seed is its own."""
    calm, moved = sim(), sim()
    request = ask(14, max_tokens=20, num_choices=3, **options)
    calm.submit(request)
    calm.drain()
    left = played(moved, moved.submit(request), cut)
    again = moved.move(left)
    moved.drain()
    for old, new in zip(left, again, strict=True):
        assert moved.traces[new.id].tokens == calm.traces[old.id].tokens
        assert moved.traces[new.id].finish == calm.traces[old.id].finish
    moved.scheduler.check()


def test_it_is_a_decode_from_its_first_token_on(sim: Sim, ask: Ask) -> None:
    """All that it has is one prompt to compute, and what comes then is not its first token."""
    world = sim(prefix_caching=False)
    (seq,) = world.submit(ask(14, max_tokens=20))
    played(world, [seq], 6)
    (again,) = world.move([seq])
    plan = world.launch()
    assert plan is not None and world.rows_of(plan) == [(again.id, 0, 20)]
    (event,) = world.land()
    assert (len(event.tokens), event.first, event.delays) == (1, False, None)


def test_what_is_asked_of_a_prompt_is_not_told_again(sim: Sim, ask: Ask) -> None:
    world = sim()
    seqs = world.submit(ask(14, max_tokens=9, prompt_logprobs=2, num_choices=2))
    again = world.move(played(world, seqs, 4))
    told = [event.prompt for _ in range(20) if world.scheduler.has_work for event in world.turn()]
    assert told and not any(told)
    assert [world.traces[seq.id].num_first for seq in again] == [1, 1]


def test_followers_do_not_wait_for_a_leader_whose_prompt_is_found_whole(sim: Sim, ask: Ask) -> None:
    """Its own blocks are still there, as after a drain: no step computes the end of the prompt, which lets them in."""
    world = sim()
    request = ask(8, max_tokens=40, num_choices=2)
    seqs = world.submit(request)
    again = world.move(played(world, seqs, 10))
    plan = world.launch()
    assert plan is not None
    assert {seq_id for seq_id, _, _ in world.rows_of(plan)} == {seq.id for seq in again}
    assert all(admit.start >= 8 for admit in plan.admits)


def test_one_that_was_let_in_once_does_not_expire(sim: Sim, ask: Ask) -> None:
    world = sim(max_seqs=1)
    seqs = world.submit(ask(4, max_tokens=9, max_wait_s=1.0))
    played(world, seqs, 3)
    world.submit(ask([7, 8], max_tokens=30, priority=-1))
    (again,) = world.move(seqs)
    world.clock.now += 5.0
    assert world.expire() == []
    world.drain()
    assert world.traces[again.id].finish == "length"
