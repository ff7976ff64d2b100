"""How things stand, as people see it: rows, queue, predicted waits, the map of blocks."""

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from scheduler.blocks import NUM_RESERVED, BlockPool
from scheduler.protocol import (
    MAX_SNAPSHOT_CELLS,
    MAX_SNAPSHOT_ROWS,
    BlockMap,
    Snapshot,
    encode_frame,
    from_engine_decoder,
)
from scheduler.simulate import CostModel, Request, Simulation
from scheduler.snapshot import block_map
from scheduler.types import Limits, SamplingParams

Sim = Callable[..., Simulation]
Ask = Callable[..., Request]
SECOND_A_TOKEN = CostModel(base_s=0.0, token_s=1.0)


def check_adds_up(blocks: BlockMap, used: int, cached: int) -> None:
    size, runs = blocks.blocks_per_cell, blocks.runs
    num_cells = sum(num for num, _, _ in runs)
    assert (num_cells - 1) * size < blocks.num_blocks <= num_cells * size and num_cells <= MAX_SNAPSHOT_CELLS
    assert all(held >= 0 and free >= 0 and held + free <= size for _, held, free in runs)
    assert sum(num * held for num, held, _ in runs) == used
    assert sum(num * free for num, _, free in runs) == cached


def check(snapshot: Snapshot) -> None:
    stats = snapshot.stats
    check_adds_up(snapshot.blocks, stats.blocks_used, stats.blocks_cached)
    assert len(snapshot.rows) == min(stats.running, MAX_SNAPSHOT_ROWS)
    assert len(snapshot.queue) == min(stats.waiting, MAX_SNAPSHOT_ROWS)
    assert len({row.slot for row in snapshot.rows}) == len(snapshot.rows)


def test_nothing_is_there_at_first(sim: Sim) -> None:
    snapshot = sim(num_blocks=42).scheduler.snapshot()
    assert (snapshot.rows, snapshot.queue) == ([], [])
    assert snapshot.blocks == BlockMap(40, 1, [(40, 0, 0)])


def test_a_row_from_its_prompt_to_its_end(sim: Sim, ask: Ask) -> None:
    s = sim(max_step_tokens=8)
    s.submit(ask(12, 3))
    seen = []
    while s.scheduler.has_work:
        s.turn()
        seen += s.scheduler.snapshot().rows
    assert [(row.phase, row.computed, row.generated, row.num_blocks) for row in seen] == [
        ("prefill", 8, 0, 3),
        ("decode", 12, 1, 3),
        ("decode", 13, 2, 4),
    ]
    assert {(row.prompt_len, row.max_tokens, row.cached_tokens, row.slot) for row in seen} == {(12, 3, 0, 0)}


def test_before_its_first_token_it_is_still_read(sim: Sim, ask: Ask) -> None:
    s = sim()
    s.submit(ask(12))
    s.launch()
    (row,) = s.scheduler.snapshot().rows
    assert (row.phase, row.computed, row.generated) == ("prefill", 12, 0)


def test_the_map_fills_and_leaves_what_a_prefix_finds(sim: Sim, ask: Ask) -> None:
    s = sim(num_blocks=42)
    s.submit(ask(12, 2))
    s.turn()
    assert s.scheduler.snapshot().blocks.runs == [(3, 1, 0), (37, 0, 0)]
    s.drain()
    assert s.scheduler.snapshot().blocks.runs == [(3, 0, 1), (37, 0, 0)]
    s.submit(ask(12, 2))
    s.turn()
    assert s.scheduler.snapshot().rows[0].cached_tokens == 8


def test_the_queue_is_in_its_order_and_says_who_waits_for_a_choice(sim: Sim, ask: Ask) -> None:
    s = sim(max_seqs=1)
    s.submit(ask(4, 8))
    s.turn()
    s.submit(ask(5, num_choices=2))
    s.submit(ask(6, priority=-1))
    s.clock.now += 2.0
    queue = s.scheduler.snapshot().queue
    assert [(each.seq_id, each.num_tokens, each.parked) for each in queue] == [
        (3, 6, False),
        (1, 5, False),
        (2, 5, True),
    ]
    assert {each.waited_s for each in queue} == {2.0}
    assert queue[2].predicted_s is None


def test_a_preempted_one_is_there_once(sim: Sim, ask: Ask) -> None:
    s = sim(num_blocks=12)
    for start in (0, 100):
        s.submit(ask([start + i for i in range(16)], 12))
    while not s.scheduler.stats().preemptions:
        s.turn()
    snapshot = s.scheduler.snapshot()
    assert [(each.seq_id, each.preemptions) for each in snapshot.queue] == [(1, 1)]
    check(snapshot)


def test_nobody_can_tell_how_long_before_anything_was_computed(sim: Sim, ask: Ask) -> None:
    s = sim()
    s.submit(ask(4))
    s.submit(ask(4))
    assert [each.predicted_s for each in s.scheduler.snapshot().queue] == [0.0, None]


def test_the_predicted_wait_is_what_it_will_be_where_all_answers_are_alike(sim: Sim, ask: Ask) -> None:
    s = sim(num_blocks=402, cost=SECOND_A_TOKEN, max_seqs=2)
    for number in (20, 21):
        s.submit(ask([10 * number + place for place in range(4)], 5))
    s.drain()
    begun = s.clock()
    for number in range(8):
        s.submit(ask([10 * number + place for place in range(4)], 5))
    s.turn()
    predicted = {each.seq_id: each.predicted_s for each in s.scheduler.snapshot().queue}
    looked_at, admitted = s.clock(), {}
    while s.scheduler.has_work:
        s.turn()
        for row in s.scheduler.snapshot().rows:
            admitted.setdefault(row.seq_id, s.clock() - looked_at)
    assert begun < looked_at and len(predicted) == 6
    waits = [predicted[seq_id] for seq_id in sorted(predicted)]
    assert waits == sorted(waits) and waits[0] > 0
    for seq_id, wait in predicted.items():
        assert wait is not None and abs(admitted[seq_id] - wait) <= 8  # a prompt is read while others decode


def test_what_answers_were_like_counts_not_what_they_may_be(sim: Sim, ask: Ask) -> None:
    def wait(earlier: int) -> float:
        s = sim(cost=SECOND_A_TOKEN, max_seqs=1)
        s.run([ask(4, earlier)])
        s.submit(ask(4, 50))
        s.submit(ask(4, 50))
        s.turn()
        predicted = s.scheduler.snapshot().queue[0].predicted_s
        assert predicted is not None
        return predicted

    assert wait(4) < 10 < 30 < wait(40)


def test_a_large_pool_is_shown_in_few_cells() -> None:
    pool = BlockPool(NUM_RESERVED + 5000, 16)
    taken = pool.allocate(7)
    assert taken is not None
    blocks = block_map(pool)
    assert (blocks.num_blocks, blocks.blocks_per_cell) == (5000, 5)
    assert blocks.runs == [(1, 5, 0), (1, 2, 0), (998, 0, 0)]


def test_no_more_than_so_many_of_each(sim: Sim, ask: Ask) -> None:
    s = sim(num_blocks=2002, max_seqs=300, max_step_tokens=4096, max_waiting=1024, max_waiting_tokens=1 << 20)
    for number in range(700):
        s.submit(ask([number], 8))
    s.turn()
    snapshot = s.scheduler.snapshot()
    assert (snapshot.stats.running, snapshot.stats.waiting) == (300, 400)
    check(snapshot)
    assert [each.seq_id for each in snapshot.queue] == list(range(300, 300 + MAX_SNAPSHOT_ROWS))


@given(
    requests=st.lists(st.tuples(st.integers(1, 30), st.integers(0, 12), st.integers(1, 3)), max_size=12),
    num_blocks=st.integers(18, 42),
    depth=st.integers(1, 2),
    steps=st.integers(0, 30),
)
def test_it_adds_up_whenever_one_looks(
    requests: list[tuple[int, int, int]], num_blocks: int, depth: int, steps: int
) -> None:
    limits = Limits(max_seqs=4, max_step_tokens=32, max_model_len=64, block_size=4, watermark=0.0)
    s = Simulation(limits, num_blocks, depth=depth)
    for length, max_tokens, num_choices in requests:
        s.submit(Request([7 + place for place in range(length)], SamplingParams(max_tokens), num_choices=num_choices))
    for _ in range(steps):
        if not s.scheduler.has_work and not s.flights:
            break
        s.turn()
        check(s.scheduler.snapshot())
    if s.scheduler.has_work:
        s.launch()
    check(s.scheduler.snapshot())


def test_it_survives_the_wire(sim: Sim, ask: Ask) -> None:
    s = sim(max_seqs=1)
    s.submit(ask(4))
    s.submit(ask(4))
    s.turn()
    snapshot = s.scheduler.snapshot()
    assert from_engine_decoder.decode(encode_frame(snapshot)[4:]) == snapshot
