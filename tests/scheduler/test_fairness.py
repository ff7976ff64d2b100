"""Several tenants in one queue: by turns, by what each was served."""

from collections.abc import Callable

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from scheduler.fairness import GENERATED_WEIGHT, MAX_TENANTS, Shares
from scheduler.plan import Delays, Event
from scheduler.queue import WaitingQueue
from scheduler.simulate import CostModel, Request, Simulation
from scheduler.types import Limits, Phase, SamplingParams, Sequence

Sim = Callable[..., Simulation]
Ask = Callable[..., Request]
FAST = settings(max_examples=25, deadline=None, derandomize=True, database=None)


def sequence(order: int, tenant: int, num_tokens: int = 10, max_tokens: int = 5, priority: int = 0) -> Sequence:
    params = SamplingParams(max_tokens)
    return Sequence(order, params, [0] * num_tokens, num_tokens, 0.0, priority, tenant=tenant, order=order)


def let_in(queue: WaitingQueue, seq: Sequence, ends: bool = True) -> Sequence | None:
    """ends: with all that it may generate."""
    overtaken = queue.take(seq)
    seq.admitted = 1.0
    if ends:
        seq.tokens += [0] * (seq.params.max_tokens - seq.num_generated)
        queue.settle(seq)
    if overtaken is not None:
        overtaken.overtaken_at = 1.0
    queue.check()
    return overtaken


def drain(queue: WaitingQueue) -> list[int]:
    """In the order that it told before, if all answers are as long as they may be."""
    told, ids = [seq.id for seq in queue.in_order(1000)], []
    while (seq := queue.head()) is not None:
        let_in(queue, seq)
        ids.append(seq.id)
    assert ids == told
    return ids


@pytest.fixture
def queue() -> WaitingQueue:
    return WaitingQueue()


def push(queue: WaitingQueue, *seqs: Sequence) -> None:
    for seq in seqs:
        queue.push(seq)


def test_tenants_take_turns_and_each_is_first_come_first_served(queue: WaitingQueue) -> None:
    push(queue, *[sequence(order, tenant=7) for order in range(1, 5)], *[sequence(order, tenant=9) for order in (5, 6)])
    assert drain(queue) == [1, 5, 2, 6, 3, 4]


def test_who_asks_for_more_has_fewer_turns(queue: WaitingQueue) -> None:
    long = [sequence(order, tenant=7, num_tokens=50) for order in range(1, 4)]  # each as much as three of the others
    push(queue, *long, *[sequence(order, tenant=9) for order in range(4, 12)])
    assert drain(queue) == [1, 4, 5, 6, 2, 7, 8, 9, 3, 10, 11]


def test_priority_is_above_fairness(queue: WaitingQueue) -> None:
    push(queue, sequence(1, 7), sequence(2, 7, priority=-1), sequence(3, 7, priority=-1), sequence(4, 9))
    assert drain(queue) == [2, 3, 4, 1]


def test_nobody_saves_up_by_keeping_quiet(queue: WaitingQueue) -> None:
    push(queue, *[sequence(order, tenant=7) for order in range(1, 9)])
    for _ in range(4):
        head = queue.head()
        assert head is not None
        let_in(queue, head)
    push(queue, *[sequence(order, tenant=9) for order in range(9, 12)])
    assert drain(queue) == [5, 9, 6, 10, 7, 11, 8]


def test_nor_while_nobody_waits(queue: WaitingQueue) -> None:
    for order in range(1, 6):
        push(queue, sequence(order, tenant=7))
        assert drain(queue) == [order]
    push(queue, *[sequence(order, tenant=9) for order in range(6, 10)], *[sequence(order, 7) for order in (10, 11)])
    assert drain(queue)[:4] == [6, 7, 10, 8]


def test_nor_by_giving_up(queue: WaitingQueue) -> None:
    """What was given up is forgotten while its tenant's counter is above the other's."""
    orders = iter(range(1, 10_000))

    def let_in_next() -> Sequence:
        head = queue.head()
        assert head is not None
        let_in(queue, head)
        return head

    push(queue, *[sequence(next(orders), tenant=7) for _ in range(100)])
    large, given_up = sequence(next(orders), 9, num_tokens=5000), sequence(next(orders), 9)
    push(queue, large, given_up)
    while let_in_next() is not large:
        pass
    for _ in range(3):
        let_in_next()
    queue.remove(given_up)
    given_up.phase = Phase.FINISHED
    for _ in range(190):  # until there are few entries, and those that are gone are dropped
        if len(queue) > 1:
            let_in_next()
        else:
            push(queue, sequence(next(orders), tenant=7))
    for _ in range(600):
        push(queue, sequence(next(orders), tenant=7))
        let_in_next()
    push(queue, *[sequence(next(orders), tenant=tenant) for tenant in (7, 9) for _ in range(8)])
    turns = [let_in_next().tenant for _ in range(8)]
    assert 3 <= turns.count(7) <= 5


def test_an_answer_that_was_shorter_than_expected_is_given_back(queue: WaitingQueue) -> None:
    first, other = sequence(1, tenant=7, max_tokens=100), sequence(2, tenant=9, max_tokens=10)
    push(queue, first, other, sequence(3, tenant=9), sequence(4, tenant=7))
    for seq in (first, other):
        assert queue.head() is seq
        let_in(queue, seq, ends=False)
    assert [seq.id for seq in queue.in_order(9)] == [3, 4]
    first.tokens += [0]  # one of a hundred
    queue.settle(first)
    assert [seq.id for seq in queue.in_order(9)] == [4, 3] and drain(queue) == [4, 3]


def test_prompts_that_are_only_read_come_and_go_together(queue: WaitingQueue) -> None:
    seqs = [sequence(order, tenant=0, max_tokens=0) for order in (1, 2, 3)]
    push(queue, *seqs)
    for seq in seqs:
        let_in(queue, seq, ends=False)
    for seq in seqs:
        queue.settle(seq)
    push(queue, late := sequence(4, tenant=0))
    assert queue.head() is late


def test_who_comes_is_level_with_what_others_were_served_whatever_is_expected(queue: WaitingQueue) -> None:
    endless = sequence(1, tenant=7, max_tokens=1000)
    push(queue, endless, *[sequence(order, tenant=7) for order in range(2, 5)])
    let_in(queue, endless, ends=False)
    push(queue, sequence(5, tenant=9))
    queue.settle(endless)  # it was given up
    assert drain(queue) == [2, 5, 3, 4]


def test_a_preempted_sequence_is_first_whoever_waits(queue: WaitingQueue) -> None:
    back = sequence(3, tenant=7)
    back.admitted = 1.0
    push(queue, sequence(2, tenant=9), sequence(4, tenant=7), back, sequence(1, tenant=7))
    assert [seq.id for seq in queue.in_order(2)] == [1, 3]
    assert drain(queue) == [1, 3, 2, 4]


def test_who_is_overtaken_is_told_once(queue: WaitingQueue) -> None:
    seqs = [sequence(1, 7), sequence(2, 7), sequence(3, 7), sequence(4, 9), sequence(5, 9)]
    push(queue, *seqs)
    told = []
    while (seq := queue.head()) is not None:
        overtaken = let_in(queue, seq)
        told.append((seq.id, None if overtaken is None else overtaken.id))
    assert told == [(1, None), (4, 2), (2, 3), (5, None), (3, None)]


def test_counters_of_those_who_came_last_are_kept() -> None:
    shares = Shares(lambda seq: 0.0)
    for tenant in range(1, MAX_TENANTS + 10):
        shares.admit(sequence(tenant, tenant))
    assert [shares.of(tenant) for tenant in (1, 9, 10, MAX_TENANTS)] == [0, 0, 10, 10]
    assert len(shares._served) == MAX_TENANTS


def test_whoever_is_forgotten_is_not_put_before_others() -> None:
    shares = Shares(lambda seq: 0.0)
    shares.admit(sequence(1, 1, num_tokens=500))
    for order in range(2, MAX_TENANTS + 10):
        shares.lift(order, None)
        shares.admit(sequence(order, 2, num_tokens=100) if order < 9 else sequence(order, order))
    assert shares.of(1) == shares._last > 500


# in the simulator


def flood(ask: Ask, num: int, tenant: int, length: int = 8, max_tokens: int = 6, at: float = 0.0) -> list[Request]:
    start = 1000 * tenant
    return [ask([start + i, *range(length - 1)], max_tokens, tenant=tenant, at=at) for i in range(num)]


def test_one_among_sixty_of_another_is_among_the_first(sim: Sim, ask: Ask) -> None:
    places = {}
    for fairness in (True, False):
        world = sim(max_seqs=2, fairness=fairness, cost=CostModel(1.0))
        report = world.run([*flood(ask, 60, tenant=1), *flood(ask, 1, tenant=2)])
        last = list(report.traces.values())[-1]
        places[fairness] = sorted(trace.times[0] for trace in report.traces.values()).index(last.times[0])
    assert places[True] <= 4 and places[False] >= 58


def first_delays(world: Simulation, most_turns: int = 1000) -> dict[int, tuple[Event, Delays]]:
    """By sequence, in the order of their first tokens."""
    found = {}
    for _ in range(most_turns):
        for event in world.turn() if world.scheduler.has_work else ():
            if event.delays is not None:
                found[event.seq_id] = event, event.delays
    return found


def test_who_waits_for_fairness_knows_it(sim: Sim, ask: Ask) -> None:
    world = sim(max_seqs=1, cost=CostModel(1.0))
    for request in [*flood(ask, 3, tenant=1, max_tokens=3), *flood(ask, 1, tenant=2, max_tokens=3)]:
        world.submit(request)
    told = first_delays(world, most_turns=4)
    assert [seq.id for seq in world.scheduler._queue.in_order(9) if seq.overtaken_at is not None] == [1]
    assert world.scheduler.stats().overtaken == 1
    told |= first_delays(world)
    # 1 waited 3 s, until 3 was let in in its turn, and 3 s more; 2's turn came with 1, after 6 s.
    assert {id: (delays.rows_s, delays.fairness_s) for id, (_, delays) in told.items()} == {
        0: (0.0, 0.0),
        3: (3.0, 0.0),
        1: (3.0, 3.0),
        2: (6.0, 3.0),
    }
    assert all(delays.rows_s + delays.fairness_s == event.queued_s for event, delays in told.values())
    assert world.scheduler.stats().overtaken == 0


def test_with_one_tenant_or_without_fairness_nobody_does(sim: Sim, ask: Ask) -> None:
    for tenants, fairness in ((1, True), (3, False)):
        world = sim(max_seqs=2, fairness=fairness, cost=CostModel(1.0))
        requests = [flood(ask, 1, tenant=1 + number % tenants, length=3 + number % 5)[0] for number in range(20)]
        for request in requests:
            world.submit(request)
        told = first_delays(world)
        assert list(told) == list(range(20))
        assert not any(delays.fairness_s for _, delays in told.values())


def test_the_prediction_is_of_the_tenant_s_turn(sim: Sim, ask: Ask) -> None:
    world = sim(max_seqs=1, cost=CostModel(0.0, token_s=0.1))
    world.run(flood(ask, 1, tenant=3))
    for request in flood(ask, 50, tenant=1):
        world.submit(request)
    [few] = world.submit(flood(ask, 1, tenant=2)[0])
    [many] = world.submit(flood(ask, 51, tenant=1)[-1])
    assert few.predicted_s is not None and many.predicted_s is not None
    assert few.predicted_s * 20 < many.predicted_s
    waits = {each.seq_id: each.predicted_s for each in world.scheduler.snapshot().queue}
    assert waits[few.id] is not None and waits[many.id] is not None and waits[few.id] * 10 < waits[many.id]


NUM_WAITING = 60
shapes = st.tuples(st.integers(1, 30), st.integers(1, 12))  # tokens of prompt and answer


def served(world: Simulation, tenant: int) -> float:
    """By now: what was let in for it, and what that has generated."""
    total = 0.0
    for trace in world.traces.values():
        if trace.request.tenant == tenant and trace.times:
            total += len(trace.request.prompt) + GENERATED_WEIGHT * len(trace.tokens)
    return total


@FAST
@given(
    left=st.lists(shapes, min_size=1, max_size=4),
    right=st.lists(shapes, min_size=1, max_size=4),
    max_seqs=st.integers(1, 6),
    num_blocks=st.integers(2 + 12, 2 + 60),
    depth=st.integers(1, 2),
)
def test_the_shares_of_two_that_always_wait_stay_close(
    left: list[tuple[int, int]], right: list[tuple[int, int]], max_seqs: int, num_blocks: int, depth: int
) -> None:
    """What rows may hold that one tenant was charged for and not served yet, and as much that was expected of answers
    and did not come: the paper's bound, twice what fits in a batch."""
    limits = Limits(max_seqs, 64, 64, 4, watermark=0.0, prefix_caching=False)
    world = Simulation(limits, num_blocks, CostModel(1.0), depth)
    bound = 2 * (max_seqs + 1) * (30 + GENERATED_WEIGHT * 12)
    for tenant, kinds in ((1, left), (2, right)):
        for number in range(NUM_WAITING):
            length, max_tokens = kinds[number % len(kinds)]
            prompt = [1000 * tenant + number, *range(length - 1)]
            world.submit(Request(prompt, SamplingParams(max_tokens), tenant=tenant))
    for _ in range(60):
        world.turn()
        first_tokens = [trace.request.tenant for trace in world.traces.values() if trace.times]
        if max(first_tokens.count(tenant) for tenant in (1, 2)) > NUM_WAITING - 3 * max_seqs:
            break  # or else one of them might have none that waits
        assert abs(served(world, 1) - served(world, 2)) <= bound
    assert min(served(world, 1), served(world, 2)) > 0
    world.scheduler.check()


workloads = st.lists(
    st.tuples(st.integers(0, 3), shapes, st.integers(0, 40), st.sampled_from([0, 0, 0, 1])), min_size=1, max_size=40
)


def play(workload: list[tuple[int, tuple[int, int], int, int]], fairness: bool, max_seqs: int) -> Simulation:
    limits = Limits(max_seqs, 32, 64, 4, watermark=0.0, prefix_caching=False, fairness=fairness)
    world = Simulation(limits, 2 + 40, CostModel(1.0))
    requests = [
        Request([place, *range(length - 1)], SamplingParams(max_tokens), float(at), priority=priority, tenant=tenant)
        for place, (tenant, (length, max_tokens), at, priority) in enumerate(workload)
    ]
    world.run(requests)
    return world


@FAST
@given(workload=workloads, max_seqs=st.integers(1, 4))
def test_no_row_stays_empty_for_fairness_s_sake_and_the_order_is_always_the_same(
    workload: list[tuple[int, tuple[int, int], int, int]], max_seqs: int
) -> None:
    fair, again = (play(workload, True, max_seqs) for _ in range(2))
    assert [trace.times for trace in fair.traces.values()] == [trace.times for trace in again.traces.values()]
    assert all(trace.finish in ("stop", "length") for trace in fair.traces.values())
    texts = {trace.request.prompt[0]: len(trace.tokens) for trace in fair.traces.values()}
    plain = play(workload, False, max_seqs)
    assert texts == {trace.request.prompt[0]: len(trace.tokens) for trace in plain.traces.values()}
    if max_seqs == 1:  # then every step has one sequence, and no order takes longer
        assert fair.clock() == plain.clock()


def test_who_asks_for_much_gets_it_among_those_who_ask_for_little(sim: Sim, ask: Ask) -> None:
    """One of three others comes with every step, more than the one row takes."""
    world = sim(max_seqs=1, cost=CostModel(1.0))
    for prompt in (1, 2):
        world.submit(ask([prompt] * 60, max_tokens=3, tenant=1))
    for number in range(100):
        world.submit(ask([10 + number], max_tokens=2, tenant=2 + number % 3))
        world.turn()
    assert world.traces[1].times and world.scheduler.stats().waiting > 0
