from collections.abc import Callable

import pytest

from scheduler.queue import WaitingQueue
from scheduler.simulate import Request, Simulation
from scheduler.types import SamplingParams, Sequence

Sim = Callable[..., Simulation]
Ask = Callable[..., Request]


def sequence(order: int, priority: int = 0, deadline: float | None = None, num_tokens: int = 1) -> Sequence:
    tokens = [0] * num_tokens
    return Sequence(order, SamplingParams(1), tokens, num_tokens, 0.0, priority, deadline, order=order)


def drain(queue: WaitingQueue) -> list[int]:
    ids = []
    while (seq := queue.head()) is not None:
        queue.remove(seq)
        queue.check()
        ids.append(seq.id)
    return ids


def test_first_come_first_served_within_a_priority() -> None:
    queue = WaitingQueue()
    for seq in [sequence(1), sequence(2, priority=1), sequence(3, priority=-1), sequence(4)]:
        queue.push(seq)
    assert drain(queue) == [3, 1, 4, 2]


def test_a_sequence_that_comes_back_is_at_the_head_of_its_priority() -> None:
    queue = WaitingQueue()
    first = sequence(1)
    queue.push(first)
    queue.remove(first)
    for seq in [sequence(2), sequence(3, priority=-1), first]:
        queue.push(seq)
    assert drain(queue) == [3, 1, 2]


def test_it_counts_the_tokens_as_they_were_when_they_came() -> None:
    queue = WaitingQueue()
    seq = sequence(1, num_tokens=5)
    queue.push(seq)
    seq.tokens.append(7)  # a token that was in flight when it was preempted
    assert queue.num_tokens == 5
    queue.remove(seq)
    assert (len(queue), queue.num_tokens) == (0, 0)


def test_removed_entries_do_not_pile_up() -> None:
    queue = WaitingQueue()
    stays = sequence(0, deadline=1e9)
    queue.push(stays)
    for order in range(1, 1000):
        seq = sequence(order, deadline=1e9)
        queue.push(seq)
        queue.remove(seq)
    [lines] = queue._ready.values()
    assert max(lines.num_entries, len(lines._next), len(queue._turns._heap), len(queue._deadlines)) < 200
    assert queue.expired(2e9) == [stays]
    assert drain(queue) == [0]


def test_parked_sequences_count_but_do_not_come_up() -> None:
    queue = WaitingQueue()
    queue.push(sequence(1))
    queue.park(sequence(2), leader_id=1)
    queue.push(sequence(3))
    assert (len(queue), queue.num_ready, queue.num_tokens) == (3, 2, 3)
    assert drain(queue) == [1, 3]
    queue.unpark(1)
    assert queue.num_ready == 1
    assert drain(queue) == [2]


def test_unparked_sequences_take_their_place_by_submission() -> None:
    queue = WaitingQueue()
    queue.park(sequence(2), leader_id=1)
    queue.push(sequence(3))
    queue.unpark(1)
    assert drain(queue) == [2, 3]


def test_a_parked_sequence_can_leave() -> None:
    queue = WaitingQueue()
    seq = sequence(2)
    queue.park(seq, leader_id=1)
    queue.remove(seq)
    queue.unpark(1)
    assert (len(queue), queue.num_parked, queue.head()) == (0, 0, None)
    queue.check()


def test_expired_gives_each_once_by_deadline() -> None:
    queue = WaitingQueue()
    late, later, never = sequence(1, deadline=2.0), sequence(2, deadline=1.0), sequence(3)
    for seq in (late, later, never):
        queue.push(seq)
    assert queue.expired(0.5) == []
    assert queue.expired(2.0) == [later, late]
    assert queue.expired(9.0) == []


def test_only_the_first_admission_has_a_deadline() -> None:
    queue = WaitingQueue()
    seq = sequence(1, deadline=1.0)
    queue.push(seq)
    queue.remove(seq)
    seq.admitted = 0.5
    queue.push(seq)
    assert queue.expired(9.0) == []


def test_check_notices_a_wrong_count() -> None:
    queue = WaitingQueue()
    queue.push(sequence(1))
    queue.num_tokens += 1
    with pytest.raises(RuntimeError, match="tokens"):
        queue.check()


@pytest.mark.parametrize(
    ("limits", "prompts", "num_choices", "told"),
    [
        ({"max_seqs": 1}, [8, 8, 8], 1, ("rows", 2, 0)),
        ({"num_blocks": 6}, [8, 12, 4], 1, ("blocks", 2, 0)),
        ({"max_step_tokens": 8}, [16, 8], 1, ("step", 1, 0)),
        ({"max_step_tokens": 8}, [16], 3, ("step", 0, 2)),
        ({}, [8, 8], 1, ("step", 0, 0)),
    ],
)
def test_what_the_queue_waits_for_is_told(
    sim: Sim, ask: Ask, limits: dict[str, int], prompts: list[int], num_choices: int, told: tuple[str, int, int]
) -> None:
    world = sim(**limits)
    for number, length in enumerate(prompts):
        world.submit(ask([1000 * number + place for place in range(length)], num_choices=num_choices))
    world.launch()
    stats = world.scheduler.stats()
    assert (stats.waits_for, stats.waiting - stats.parked, stats.parked) == told
