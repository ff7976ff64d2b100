"""Where sequences' time goes, as the scheduler tells it."""

import pytest

from scheduler.blocks import NUM_RESERVED, BlockPool
from scheduler.plan import Delays, Event, StepResult
from scheduler.scheduler import Scheduler
from scheduler.simulate import FakeClock
from scheduler.types import Limits, SamplingParams, Sequence

BLOCK = 4


class World:
    """A scheduler whose steps take as long as the test says."""

    def __init__(self, *, seqs: int = 4, tokens: int = 16, blocks: int = 64, mixed: int | None = None) -> None:
        self.clock = FakeClock()
        self.clock.now = 100.0
        limits = Limits(seqs, tokens, 1024, BLOCK, watermark=0.0, mixed_prompt_tokens=mixed, prefix_caching=False)
        self.scheduler = Scheduler(limits, BlockPool(blocks + NUM_RESERVED, BLOCK), self.clock)
        self.events: dict[int, list[Event]] = {}

    def add(self, id: int, length: int, max_tokens: int = 100, choices: int = 1) -> None:
        self.scheduler.submit(
            [
                Sequence(id + n, SamplingParams(max_tokens), list(range(length)), length, self.clock.now)
                for n in range(choices)
            ]
        )

    def step(self, seconds: float) -> None:
        plan = self.scheduler.plan()
        assert plan is not None
        self.clock.now += seconds
        result = StepResult([7] * plan.num_samples, [None] * plan.num_samples)
        for event in self.scheduler.commit(plan, result):
            self.events.setdefault(event.seq_id, []).append(event)

    def first(self, id: int) -> tuple[Event, Delays]:
        event = self.events[id][0]
        assert event.delays is not None
        return event, event.delays

    @property
    def others_s(self) -> float:
        return self.scheduler.stats().others_prefill_s


def test_alone_it_loses_nothing_to_anybody() -> None:
    world = World()
    world.add(1, 40)
    for _ in range(3):
        world.step(2.0)
    event, delays = world.first(1)
    assert (event.queued_s, event.prefill_s, delays) == (0.0, 6.0, Delays())
    world.step(1.0)
    assert world.others_s == 0


def test_of_shared_steps_others_have_their_share_of_the_tokens() -> None:
    world = World()
    world.add(1, 12)
    world.add(2, 4)
    world.step(2.0)
    assert world.first(1)[1].others_prefill_s == pytest.approx(0.5)
    assert world.first(2)[1].others_prefill_s == pytest.approx(1.5)


def test_who_gets_no_token_of_a_step_waits_for_others_prompts() -> None:
    world = World()
    world.add(1, 32)
    world.step(1.0)  # 16 of 32
    world.add(2, 8)
    world.scheduler._live[2].priority = -1
    world.step(1.0)
    world.step(1.0)
    _, delays = world.first(2)
    assert world.first(1)[0].prefill_s == 2.0
    assert delays.others_prefill_s == 0.0 and world.first(2)[0].queued_s == 1.0


def test_a_decode_loses_what_a_step_takes_longer_for_prompts() -> None:
    world = World()
    world.add(1, 4)
    world.step(1.0)
    for _ in range(5):
        world.step(1.0)
    assert world.others_s == 0
    world.add(2, 15)
    world.step(4.0)
    assert world.others_s == pytest.approx(3.0)
    world.step(1.0)
    assert world.others_s == pytest.approx(3.0)


def test_before_any_step_without_prompts_tokens_decide() -> None:
    world = World()
    world.add(1, 4)
    world.step(1.0)
    world.add(2, 15)
    world.step(4.0)
    assert world.others_s == pytest.approx(4.0 * 15 / 16)


def test_who_waits_knows_what_for() -> None:
    world = World(seqs=1)
    world.add(1, 4, max_tokens=3)
    world.step(1.0)
    world.add(2, 4)
    world.clock.now += 0.25  # before the next plan: the row was taken already
    world.step(1.0)
    world.step(1.0)
    world.step(1.0)
    event, delays = world.first(2)
    assert event.queued_s == pytest.approx(2.25)
    assert (delays.rows_s, delays.blocks_s, delays.choice_s) == (pytest.approx(2.25), 0.0, 0.0)


def test_or_for_blocks() -> None:
    world = World(blocks=8)
    world.add(1, 24, max_tokens=8)
    world.step(1.0)
    world.step(1.0)
    world.add(2, 12, max_tokens=2)
    while 2 not in world.events:
        world.step(1.0)
    event, delays = world.first(2)
    assert delays.blocks_s == pytest.approx(event.queued_s) and event.queued_s >= 6.0


def test_a_second_choice_waits_for_the_first() -> None:
    world = World()
    world.add(1, 32, choices=2)
    while 2 not in world.events:
        world.step(1.0)
    event, delays = world.first(2)
    assert delays.choice_s == event.queued_s == 2.0


def test_who_was_preempted_is_told_how_long_it_was_gone() -> None:
    world = World(blocks=8)
    world.add(1, 12, max_tokens=20)
    world.add(2, 12, max_tokens=20)
    left: float | None = None
    while world.scheduler.has_work:
        before = world.scheduler.stats().preemptions
        now = world.clock.now
        world.step(1.0)
        if left is None and world.scheduler.stats().preemptions > before:
            left = now
    assert left is not None
    told = [(event.away_s, index) for index, event in enumerate(world.events[2]) if event.away_s is not None]
    assert told and world.events[2][0].away_s is None
    assert sum(away for away, _ in told) >= 2.0
    assert all(event.away_s is None for event in world.events[1])


def test_what_is_told_sums_to_the_time_before_the_first_token() -> None:
    world = World(seqs=3, tokens=8, blocks=24, mixed=4)
    arrivals = {1: 20, 5: 9, 9: 30, 13: 3, 17: 16}
    for id, length in arrivals.items():
        world.add(id, length, max_tokens=6, choices=2)
        world.step(0.7)
    while world.scheduler.has_work:
        world.step(1.3)
    assert {id for each in arrivals for id in (each, each + 1)} == world.events.keys()
    for id in world.events:
        event, told = world.first(id)
        waited = told.grammar_s + told.choice_s + told.rows_s + told.blocks_s
        assert -1e-9 <= waited <= event.queued_s + 1e-9
        assert -1e-9 <= told.others_prefill_s + told.away_s <= event.prefill_s + 1e-9


def test_the_queue_predicts_the_first_token() -> None:
    world = World()
    world.add(1, 16)
    assert world.scheduler._live[1].predicted_s is None
    world.step(2.0)  # 8 prompt tokens a second
    world.step(1.0)  # what decodes take says nothing of prompts
    world.add(2, 40)
    world.add(3, 8)
    assert [world.scheduler._live[id].predicted_s for id in (2, 3)] == [pytest.approx(5.0), pytest.approx(6.0)]
    world.step(1.875)  # 15 of 40 beside a decode
    world.add(4, 7)
    assert world.scheduler._live[4].predicted_s == pytest.approx((25 + 8 + 7) / 8, rel=0.2)
    while 3 not in world.events:
        world.step(1.875)
    assert world.first(3)[1].predicted_s == pytest.approx(6.0)
