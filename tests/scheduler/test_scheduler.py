"""The rules of admission, chunking, decoding and ending, one step at a time."""

from collections.abc import Callable

import pytest

from scheduler.blocks import BlockPool
from scheduler.plan import StepPlan, StepResult
from scheduler.scheduler import Scheduler
from scheduler.simulate import FakeClock, Request, Simulation
from scheduler.types import Limits, Rejected, SamplingParams, Sequence

Sim = Callable[..., Simulation]
Ask = Callable[..., Request]


def step(sim: Simulation) -> list[tuple[int, int, int]]:
    """Plans, runs and commits one step: (sequence, start, count) of its works."""
    plan = sim.launch()
    assert plan is not None
    rows = sim.rows_of(plan)
    sim.land()
    sim.scheduler.check()
    return rows


def launch(sim: Simulation) -> StepPlan:
    plan = sim.launch()
    assert plan is not None
    return plan


# --- admission ---


def test_nothing_to_do_is_no_plan(sim: Sim) -> None:
    world = sim()
    assert world.launch() is None
    assert not world.scheduler.has_work


def test_a_prompt_is_admitted_with_blocks_for_all_of_it(sim: Sim, ask: Ask) -> None:
    world = sim(max_step_tokens=4)
    world.submit(ask(9))
    (admit,) = launch(world).admits
    assert len(admit.blocks) == 3  # though the first step computes one block only
    assert (admit.start, admit.prompt_len, len(admit.tokens)) == (0, 9, 9)


def test_a_plan_does_not_change_after_it_is_made(sim: Sim, ask: Ask) -> None:
    world = sim()
    world.submit(ask(4, max_tokens=9))
    (admit,) = launch(world).admits
    world.land()
    step(world)
    assert (len(admit.tokens), len(admit.blocks)) == (4, 1)


def test_waiting_sequences_enter_in_order_until_the_budget_is_spent(sim: Sim, ask: Ask) -> None:
    world = sim(max_step_tokens=8)
    for _ in range(3):
        world.submit(ask(4))
    assert step(world) == [(0, 0, 4), (1, 0, 4)]
    assert step(world) == [(0, 4, 1), (1, 4, 1), (2, 0, 4)]


def test_no_more_than_max_seqs_run(sim: Sim, ask: Ask) -> None:
    world = sim(max_seqs=2)
    for _ in range(3):
        world.submit(ask(2, max_tokens=2))
    assert [seq_id for seq_id, _, _ in step(world)] == [0, 1]
    assert [seq_id for seq_id, _, _ in step(world)] == [0, 1]
    assert [seq_id for seq_id, _, _ in step(world)] == [2]


def test_no_more_run_than_the_budget_has_tokens(sim: Sim, ask: Ask) -> None:
    world = sim(max_step_tokens=2)
    for _ in range(3):
        world.submit(ask(1))
    step(world)
    assert step(world) == [(0, 1, 1), (1, 1, 1)]
    assert world.scheduler.stats().waiting == 1


def test_the_head_of_the_queue_blocks_those_behind_it(sim: Sim, ask: Ask) -> None:
    world = sim(num_blocks=2 + 6)
    world.submit(ask(16))  # 4 of 6 blocks
    step(world)
    world.submit(ask(list(range(12))))  # 3 more do not fit
    world.submit(ask(1))  # would fit
    assert [seq_id for seq_id, _, _ in step(world)] == [0]


def test_a_higher_priority_enters_first(sim: Sim, ask: Ask) -> None:
    world = sim(max_seqs=1)
    world.submit(ask(2, priority=1))
    world.submit(ask(2, priority=0))
    assert step(world) == [(1, 0, 2)]


def test_the_watermark_is_kept_free_for_those_that_run(sim: Sim, ask: Ask) -> None:
    world = sim(num_blocks=2 + 10, watermark=0.2)
    world.submit(ask(4))
    world.submit(ask(list(range(28))))  # 7 of the 9 left
    world.submit(ask(list(range(50, 54))))  # 1 of the 2 left
    assert [seq_id for seq_id, _, _ in step(world)] == [0, 1]


def test_the_watermark_does_not_stop_the_only_sequence(sim: Sim, ask: Ask) -> None:
    world = sim(num_blocks=2 + 10, watermark=0.5)
    world.submit(ask(39))
    assert step(world) == [(0, 0, 39)]


def test_slots_are_released_before_they_are_taken_again(sim: Sim, ask: Ask) -> None:
    world = sim(max_seqs=1)
    for _ in range(2):
        world.submit(ask(2, max_tokens=1))
    first = launch(world)
    world.land()
    second = launch(world)
    assert second.releases == [first.works[0].slot] == [second.admits[0].slot]


# --- refusals ---


def refused(world: Simulation, request: Request) -> Rejected:
    with pytest.raises(Rejected) as caught:
        world.submit(request)
    world.scheduler.check()
    return caught.value


def test_a_prompt_as_long_as_the_context_is_too_long(sim: Sim, ask: Ask) -> None:
    world = sim(max_model_len=20)
    assert refused(world, ask(20)).code == "too_long"
    world.submit(ask(19))


def test_a_prompt_that_leaves_no_room_for_a_token_never_fits(sim: Sim, ask: Ask) -> None:
    world = sim(num_blocks=2 + 3)
    assert refused(world, ask(12)).code == "never_fits"
    world.submit(ask(11))


def test_the_queue_is_limited_by_sequences(sim: Sim, ask: Ask) -> None:
    world = sim(max_waiting=3)
    world.submit(ask(1, num_choices=2))
    refusal = refused(world, ask(1, num_choices=2))
    assert (refusal.code, refusal.retry_after_s) == ("queue_full", 1.0)
    assert world.scheduler.stats().waiting == 2  # all choices or none
    world.submit(ask(1))


def test_the_queue_is_limited_by_tokens(sim: Sim, ask: Ask) -> None:
    world = sim(max_waiting_tokens=10)
    world.submit(ask(8))
    assert refused(world, ask(3)).code == "queue_full"
    world.submit(ask(2))


def test_a_request_over_the_token_limit_is_taken_when_nothing_waits(sim: Sim, ask: Ask) -> None:
    world = sim(max_waiting_tokens=10)
    world.submit(ask(11))
    assert refused(world, ask(1)).code == "queue_full"


def test_retry_after_follows_the_rate(sim: Sim, ask: Ask) -> None:
    world = sim(max_seqs=1, max_waiting=1)
    world.submit(ask(40, max_tokens=9))
    launch(world)
    world.clock.now = 20.0
    world.land()  # 40 tokens in 20 seconds
    world.submit(ask(30))
    assert refused(world, ask(1)).retry_after_s == pytest.approx(15.0)


def test_ids_must_be_new_and_prompts_not_empty() -> None:
    scheduler = Scheduler(Limits(4, 8, 64, 4), BlockPool(9, 4), FakeClock())
    scheduler.submit([Sequence(1, SamplingParams(1), [5], 1, 0.0)])
    with pytest.raises(ValueError, match="not new"):
        scheduler.submit([Sequence(1, SamplingParams(1), [5], 1, 0.0)])
    with pytest.raises(ValueError, match="empty"):
        scheduler.submit([Sequence(2, SamplingParams(1), [], 0, 0.0)])
    with pytest.raises(ValueError, match="more than they have"):
        scheduler.submit([Sequence(2, SamplingParams(1), [5, 6], 3, 0.0)])
    with pytest.raises(ValueError, match="generated all they may"):
        scheduler.submit([Sequence(2, SamplingParams(1), [5, 6], 1, 0.0)])


def test_the_pool_has_blocks_of_the_size_that_the_limits_say() -> None:
    with pytest.raises(ValueError, match="blocks of 4 tokens"):
        Scheduler(Limits(4, 8, 64, 4), BlockPool(9, 8), FakeClock())


# --- chunks ---


def test_decodes_go_before_prompts(sim: Sim, ask: Ask) -> None:
    world = sim(max_step_tokens=8)
    world.submit(ask(2, max_tokens=9))
    step(world)
    world.submit(ask(20))
    assert step(world) == [(0, 2, 1), (1, 0, 4)]  # 7 tokens are left: one block
    assert step(world) == [(0, 3, 1), (1, 4, 4)]


def test_prompts_in_progress_go_before_waiting_ones_oldest_first(sim: Sim, ask: Ask) -> None:
    world = sim(max_step_tokens=8, chunk_cap=4)
    world.submit(ask(12))
    world.submit(ask(list(range(12))))
    world.submit(ask(list(range(50, 54))))
    assert step(world) == [(0, 0, 4), (1, 0, 4)]
    assert step(world) == [(0, 4, 4), (1, 4, 4)]
    assert step(world) == [(0, 8, 4), (1, 8, 4)]
    assert step(world) == [(0, 12, 1), (1, 12, 1), (2, 0, 4)]


def test_the_chunk_cap_holds_only_while_others_wait(sim: Sim, ask: Ask) -> None:
    world = sim(max_step_tokens=16, chunk_cap=4, max_seqs=1)
    world.submit(ask(32))
    assert step(world) == [(0, 0, 16)]
    world.submit(ask(2))
    assert step(world) == [(0, 16, 4)]
    world.scheduler.abort(1)
    assert step(world) == [(0, 20, 12)]


def test_only_the_chunk_that_ends_the_prompt_samples(sim: Sim, ask: Ask) -> None:
    world = sim(max_step_tokens=4)
    world.submit(ask(6))
    assert [work.sample for work in launch(world).works] == [False]
    assert world.land() == []
    assert [work.sample for work in launch(world).works] == [True]
    assert len(world.land()) == 1


# --- prefix cache ---


def test_a_known_prefix_is_not_computed_again(sim: Sim, ask: Ask) -> None:
    world = sim()
    world.submit(ask(10))
    world.drain()
    world.submit(ask(10))
    assert step(world) == [(1, 8, 2)]
    stats = world.scheduler.stats()
    assert (stats.prefix_queries, stats.prefix_hits) == (20, 8)


def test_the_last_token_is_computed_even_if_its_block_is_known(sim: Sim, ask: Ask) -> None:
    world = sim()
    world.submit(ask(8))
    world.drain()
    world.submit(ask(8))
    assert step(world) == [(1, 4, 4)]


def test_generated_tokens_are_cached_too(sim: Sim, ask: Ask) -> None:
    world = sim()
    world.submit(ask(6, max_tokens=8))
    world.drain()
    world.submit(ask([*range(100, 106), *world.traces[0].tokens]))
    assert step(world) == [(1, 12, 2)]  # of 13 tokens with keys and values, 12 fill blocks


def test_a_running_sequence_shares_its_blocks(sim: Sim, ask: Ask) -> None:
    world = sim()
    world.submit(ask(8, max_tokens=9))
    step(world)
    world.submit(ask(9))
    plan = launch(world)
    assert [admit.start for admit in plan.admits] == [8]
    assert plan.num_tokens == 2


def test_a_salt_keeps_tenants_apart(sim: Sim, ask: Ask) -> None:
    world = sim()
    world.submit(ask(10, salt=b"a"))
    world.drain()
    world.submit(ask(10, salt=b"b"))
    assert step(world) == [(1, 0, 10)]


def test_twins_in_one_step_compute_twice(sim: Sim, ask: Ask) -> None:
    world = sim()
    world.submit(ask(8))
    world.submit(ask(8))
    assert step(world) == [(0, 0, 8), (1, 0, 8)]
    world.drain()
    assert world.scheduler.stats().blocks_cached == 2 + 0  # the twin's blocks stayed private


def test_without_prefix_caching_nothing_is_shared(sim: Sim, ask: Ask) -> None:
    world = sim(prefix_caching=False)
    world.submit(ask(10))
    world.drain()
    world.submit(ask(10))
    assert step(world) == [(1, 0, 10)]
    assert world.scheduler.stats().blocks_cached == 0


def test_blocks_are_published_after_the_step_that_fills_them(sim: Sim, ask: Ask) -> None:
    world = sim()
    (seq,) = world.submit(ask(8))
    launch(world)
    world.scheduler._hasher.extend(seq, 2)
    assert [world.pool.find(digest) for digest in seq.hashes] == [None, None]
    world.land()
    assert [world.pool.find(digest) for digest in seq.hashes] == seq.blocks[:2]


# --- endings ---


def test_max_tokens_is_a_length(sim: Sim, ask: Ask) -> None:
    world = sim()
    world.submit(ask(3, max_tokens=5))
    world.drain()
    trace = world.traces[0]
    assert (len(trace.tokens), trace.finish) == (5, "length")


def test_the_context_is_a_length(sim: Sim, ask: Ask) -> None:
    world = sim(max_model_len=12)
    world.submit(ask(9, max_tokens=99))
    world.drain()
    assert (len(world.traces[0].tokens), world.traces[0].finish) == (3, "length")


def test_a_sequence_alone_that_fills_the_cache_ends(sim: Sim, ask: Ask) -> None:
    world = sim(num_blocks=2 + 3)
    world.submit(ask(4, max_tokens=99))
    world.drain()
    # 12 tokens have keys and values; the 13th needs none.
    assert (len(world.traces[0].tokens), world.traces[0].finish) == (9, "length")


def stop_at(world: Simulation, ask: Ask, index: int, **options: int) -> Request:
    """A request whose toy text has a stop id at `index`."""
    text, _ = world.model.generate(list(range(100, 105)), SamplingParams(index + 1), 99)
    return ask(5, max_tokens=30, stop_ids=(text[index],), **options)


def test_a_stop_id_ends_and_is_reported(sim: Sim, ask: Ask) -> None:
    world = sim()
    request = stop_at(world, ask, 2)
    world.submit(request)
    world.drain()
    assert len(world.traces[0].tokens) == 3
    assert world.traces[0].tokens[-1] in request.params.stop_ids
    assert world.traces[0].finish == "stop"


def test_a_stop_id_before_min_tokens_is_a_token() -> None:
    scheduler = Scheduler(Limits(1, 8, 64, 4), BlockPool(9, 4), FakeClock())
    scheduler.submit([Sequence(0, SamplingParams(9, min_tokens=2, stop_ids=(7,)), [1], 1, 0.0)])
    finishes = []
    while scheduler.has_work:
        plan = scheduler.plan()
        assert plan is not None
        finishes += [event.finish for event in scheduler.commit(plan, StepResult([7], []))]
    assert finishes == [None, "stop"]


def test_blocks_and_slots_come_back(sim: Sim, ask: Ask) -> None:
    world = sim()
    for _ in range(5):
        world.submit(ask(7))
    world.drain()
    world.scheduler.check()
    assert world.pool.free == world.pool.usable
    assert world.scheduler.stats().blocks_used == 0


def test_the_first_token_is_marked_once_with_its_times(sim: Sim, ask: Ask) -> None:
    world = sim(max_seqs=1)
    world.submit(ask(3, max_tokens=1))
    world.submit(ask(9, max_tokens=3))
    step(world)
    world.clock.now = 5.0
    launch(world)
    world.clock.now = 7.0
    (event,) = world.land()
    assert (event.first, event.queued_s, event.prefill_s) == (True, 5.0, 2.0)
    launch(world)
    (event,) = world.land()
    assert (event.first, event.queued_s) == (False, 0.0)


def test_the_first_token_says_how_much_was_cached(sim: Sim, ask: Ask) -> None:
    world = sim()
    world.submit(ask(9))
    world.drain()
    world.submit(ask(9))
    world.drain()
    assert [trace.cached_tokens for trace in world.traces.values()] == [0, 8]


# --- abort, fail, expire ---


def test_abort_is_idempotent_and_silent(sim: Sim, ask: Ask) -> None:
    world = sim()
    world.submit(ask(5))
    step(world)
    assert world.scheduler.abort(0)
    assert not world.scheduler.abort(0)
    assert not world.scheduler.abort(77)
    assert not world.scheduler.has_work
    assert world.pool.free == world.pool.usable


def test_a_waiting_sequence_can_be_aborted(sim: Sim, ask: Ask) -> None:
    world = sim()
    world.submit(ask(5))
    world.submit(ask(6))
    world.scheduler.abort(0)
    assert step(world) == [(1, 0, 6)]


def test_what_an_aborted_sequence_samples_is_dropped(sim: Sim, ask: Ask) -> None:
    world = sim()
    world.submit(ask(5))
    world.submit(ask(6))
    launch(world)
    world.scheduler.abort(0)
    assert [event.seq_id for event in world.land()] == [1]


def test_blocks_of_an_aborted_sequence_wait_for_its_step(sim: Sim, ask: Ask) -> None:
    world = sim()
    world.submit(ask(5))
    launch(world)
    world.scheduler.abort(0)
    assert (world.pool.free, world.pool.fenced) == (38, 2)
    world.land()
    assert (world.pool.free, world.pool.fenced) == (40, 0)


def test_a_failed_step_ends_its_sequences_and_publishes_nothing(sim: Sim, ask: Ask) -> None:
    world = sim(max_step_tokens=8)
    world.submit(ask(8))
    world.submit(ask(9))
    plan = world.launch(crash=True)
    assert plan is not None
    assert [(event.seq_id, event.tokens, event.finish) for event in world.land()] == [(0, [], "error")]
    world.scheduler.check()
    assert world.scheduler.stats().failed_steps == 1
    assert step(world) == [(1, 0, 8)]  # no hit on what the failed step wrote


def test_a_failure_spares_those_that_were_not_in_the_step(sim: Sim, ask: Ask) -> None:
    world = sim(max_seqs=1)
    world.submit(ask(8))
    world.submit(ask(9))
    world.launch(crash=True)
    world.land()
    world.drain()
    assert [trace.finish for trace in world.traces.values()] == ["error", "length"]


def test_plans_are_committed_once_and_in_order(sim: Sim, ask: Ask) -> None:
    world = sim()
    world.submit(ask(2))
    plan, ahead = launch(world), launch(world)
    with pytest.raises(ValueError, match="oldest in flight"):
        world.scheduler.commit(ahead, StepResult([1], []))
    world.scheduler.commit(plan, StepResult([1], []))
    with pytest.raises(ValueError, match="oldest in flight"):
        world.scheduler.fail(plan)


def test_a_result_must_have_a_token_for_each_sample(sim: Sim, ask: Ask) -> None:
    world = sim()
    world.submit(ask(2))
    with pytest.raises(ValueError, match="one for each sample"):
        world.scheduler.commit(launch(world), StepResult([], []))


def test_waiting_past_the_deadline_expires(sim: Sim, ask: Ask) -> None:
    world = sim(max_seqs=1)
    world.submit(ask(2, max_tokens=9, max_wait_s=1.0))
    world.submit(ask(2, max_wait_s=1.0))
    world.submit(ask(2, max_wait_s=3.0))
    step(world)
    world.clock.now = 2.0
    assert [(event.seq_id, event.finish) for event in world.expire()] == [(1, "expired")]
    world.clock.now = 2.5
    assert world.expire() == []


def test_every_field_of_the_stats_is_filled(sim: Sim, ask: Ask) -> None:
    world = sim(max_seqs=1)
    world.submit(ask(6))
    world.submit(ask(3))
    step(world)
    stats = world.scheduler.stats()
    assert (stats.running, stats.waiting, stats.waiting_tokens) == (1, 1, 3)
    assert (stats.blocks_used, stats.blocks_cached, stats.blocks_total) == (2, 0, 40)
    assert (stats.steps, stats.failed_steps, stats.preemptions, stats.recomputed_tokens) == (1, 0, 0, 0)


def test_check_notices_a_sequence_without_its_blocks(sim: Sim, ask: Ask) -> None:
    world = sim()
    (seq,) = world.submit(ask(6))
    step(world)
    seq.blocks.pop()
    with pytest.raises(RuntimeError):
        world.scheduler.check()


def test_a_request_that_alone_is_over_the_limit_of_sequences_waits_for_an_empty_queue(sim: Sim, ask: Ask) -> None:
    world = sim(max_waiting=2)
    world.submit(ask(2, num_choices=3))
    with pytest.raises(Rejected) as refusal:
        world.submit(ask(2))
    assert refusal.value.code == "queue_full"
    world.drain()
    assert [trace.finish for trace in world.traces.values()] == ["length"] * 3
