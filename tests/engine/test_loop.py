"""The step loop with a scripted server and a toy executor: who hears what, and what a failing step costs."""

from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from engine.compiling import CompileQueue
from engine.grammar import Matchers
from engine.heart import Heart
from engine.loop import Loop, StepsFail
from engine.server import Gone
from scheduler.blocks import BlockPool
from scheduler.plan import PromptResult, StepPlan, StepResult
from scheduler.protocol import Abort, Accepted, FromEngine, Output, Outputs, Pulse, Rejection, StepRecord, Submit
from scheduler.scheduler import Scheduler
from scheduler.types import Limits, SamplingParams

VOCAB = 50


class FakeServer:
    """Holds what the gateways sent, and records what they are sent."""

    def __init__(self) -> None:
        self.inbox: deque[tuple[int, Submit | Abort | Gone]] = deque()
        self.during_step: list[tuple[int, Abort | Gone]] = []
        self.sent: list[tuple[int, FromEngine]] = []
        self.connections = [1, 2]
        self.congested = False

    def take(self) -> list[tuple[int, Submit | Abort | Gone]]:
        return [self.inbox.popleft() for _ in range(len(self.inbox))]

    def take_aborts(self) -> list[tuple[int, Abort | Gone]]:
        taken, self.during_step = self.during_step, []
        return taken

    def send(self, connection: int, message: FromEngine) -> None:
        self.sent.append((connection, message))

    def wait(self, seconds: float) -> None:
        pass

    def wake(self) -> None:
        pass

    def outputs(self, connection: int) -> list[Output]:
        frames = [message for to, message in self.sent if to == connection]
        return [output for frame in frames if isinstance(frame, Outputs) for output in frame.outputs]


class Counting:
    """Samples 10, 11, 12, ... in every row; raises while `broken`, when a plan is finished or when it is launched."""

    def __init__(self) -> None:
        self.ahead = 0
        self.broken = 0
        self.unlaunchable = 0
        self.matchers = Matchers()
        self.steps = 0
        self.launched: deque[StepPlan] = deque()
        self.plans: list[StepPlan] = []
        self.during: Callable[[], None] = lambda: None  # what happens while a plan is finished

    def launch(self, plan: StepPlan) -> None:
        if self.unlaunchable:
            self.unlaunchable -= 1
            raise RuntimeError("the device takes nothing")
        self.launched.append(plan)
        self.plans.append(plan)

    def finish(self) -> StepResult:
        plan = self.launched.popleft()
        self.steps += 1
        self.during()
        if self.broken:
            self.broken -= 1
            raise RuntimeError("the device is on fire")
        return self.result(plan)

    def result(self, plan: StepPlan) -> StepResult:
        count = sum(work.sample for work in plan.works)
        return StepResult([10 + self.steps] * count, [None] * count)


class World:
    def __init__(self, **limits: int) -> None:
        self.server, self.runner, self.now = FakeServer(), Counting(), 0.0
        sizes = {"max_seqs": 4, "max_step_tokens": 32, "max_model_len": 64, "block_size": 4, **limits}
        self.scheduler = Scheduler(Limits(**sizes), BlockPool(40, 4), lambda: self.now)
        grammars = CompileQueue(lambda told: NotImplemented, self.server.wake, lambda: self.now)
        server: Any = self.server
        self.heart = Heart(lambda: self.now)
        self.loop = Loop(self.scheduler, self.runner, server, VOCAB, grammars, lambda: self.now, heart=self.heart)

    def submit(self, seq_id: int, connection: int = 1, *, prompt: list[int] | None = None, **more: Any) -> None:
        params = SamplingParams(max_tokens=3)
        seq_ids = [seq_id]
        message = Submit(seq_ids, prompt or [1, 2, 3], params, [0], **more)
        self.server.inbox.append((connection, message))

    def turn(self, count: int = 1) -> None:
        for _ in range(count):
            self.loop.turn()
            self.scheduler.check()


def test_a_request_is_accepted_then_answered_to_its_own_gateway() -> None:
    world = World()
    world.submit(5, connection=2)
    world.turn(4)
    assert world.server.sent[0] == (2, Accepted([5]))
    outputs = world.server.outputs(2)
    assert [(o.seq_id, o.tokens, o.finish) for o in outputs] == [(5, [11], None), (5, [12], None), (5, [13], "length")]
    assert outputs[0].first is not None
    assert world.server.outputs(1) == []


def test_each_step_is_recorded_once_however_many_gateways_there_are() -> None:
    world = World()
    world.submit(1, connection=1)
    world.submit(1, connection=2)
    world.turn(3)
    records = [step for _, m in world.server.sent if isinstance(m, Outputs) for step in m.steps]
    assert [(r.kind, r.num_seqs, r.num_tokens) for r in records] == [
        ("prefill", 2, 6),
        ("decode", 2, 2),
        ("decode", 2, 2),
    ]


def test_the_same_id_from_two_gateways_means_two_sequences() -> None:
    world = World()
    world.submit(1, connection=1)
    world.submit(1, connection=2)
    world.turn(1)
    world.server.inbox.append((1, Abort([1])))
    world.turn(2)
    assert [o.finish for o in world.server.outputs(1)] == [None]
    assert [o.finish for o in world.server.outputs(2)] == [None, None, "length"]


def test_choices_of_one_request_get_their_own_seeds() -> None:
    world = World()
    world.server.inbox.append((1, Submit([1, 2], [3], SamplingParams(max_tokens=1), [100, 200])))
    world.turn(3)
    assert [admit.params.seed for plan in world.runner.plans for admit in plan.admits] == [100, 200]


def test_what_was_generated_elsewhere_is_part_of_it_and_not_told_again() -> None:
    world = World()
    world.server.inbox.append((1, Submit([1, 2], [3, 4], SamplingParams(3), [0, 1], generated=[[5, 6], [7]])))
    world.turn(3)
    (admits,) = {tuple((tuple(a.tokens), a.prompt_len) for p in world.runner.plans for a in p.admits)}
    assert admits == (((3, 4, 5, 6), 2), ((3, 4, 7), 2))
    outputs = world.server.outputs(1)
    assert [(o.seq_id, len(o.tokens), o.finish) for o in outputs] == [(1, 1, "length"), (2, 1, None), (2, 1, "length")]
    assert not any(o.first for o in outputs)


@pytest.mark.parametrize("generated", [[[5], [6]], [[VOCAB]], [[5, 6, 7]]])
def test_what_cannot_have_been_generated_is_refused(generated: list[list[int]]) -> None:
    """Of too many sequences, outside of the vocabulary, all that it may have."""
    world = World()
    world.submit(1, generated=generated)
    world.turn(1)
    ((_, refusal),) = world.server.sent
    assert isinstance(refusal, Rejection) and refusal.code == "invalid"


def test_while_a_step_runs_its_pulse_tells_how_long_it_should_take() -> None:
    world = World()
    pulses: list[Pulse | None] = [world.heart.pulse()]

    def during() -> None:
        world.now += 2.0
        pulses.append(world.heart.pulse())

    world.runner.during = during
    world.submit(1)
    world.turn(3)
    world.now += 0.5
    assert pulses == [None, Pulse(2.0, None), Pulse(2.0, 2.0), Pulse(2.0, 2.0)]
    world.turn(1)
    assert world.heart.pulse() == Pulse(0.0, None)


def test_what_is_cancelled_during_a_step_is_gone_when_it_ends() -> None:
    world = World()
    world.submit(1)
    world.submit(2)
    world.turn(1)
    world.server.during_step = [(1, Abort([1]))]
    world.turn(1)
    assert [o.seq_id for o in world.server.outputs(1)] == [1, 2, 2]
    assert world.scheduler.stats().running == 1


def test_a_gateway_that_leaves_takes_its_sequences_with_it() -> None:
    world = World()
    world.submit(1, connection=1)
    world.submit(1, connection=2)
    world.turn(1)
    world.server.inbox.append((1, Gone()))
    world.server.connections = [2]
    world.turn(3)
    stats = world.scheduler.stats()
    assert (stats.running, stats.waiting, stats.blocks_used) == (0, 0, 0)
    assert world.server.outputs(2)[-1].finish == "length"


def test_a_failed_step_ends_its_sequences_and_nobody_elses() -> None:
    world = World()
    world.submit(1)
    world.turn(1)
    world.runner.broken = 1
    world.turn(1)
    world.submit(2)
    world.turn(3)
    assert [(o.seq_id, o.finish) for o in world.server.outputs(1)] == [
        (1, None),
        (1, "error"),
        (2, None),
        (2, None),
        (2, "length"),
    ]
    assert world.scheduler.stats().failed_steps == 1


def test_the_engine_gives_up_when_step_after_step_fails() -> None:
    world = World()
    world.runner.broken = 3
    for seq_id in range(2):
        world.submit(seq_id)
        world.turn(1)
    world.submit(9)
    with pytest.raises(StepsFail, match="3 steps in a row"):
        world.turn(1)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (Submit([1], [VOCAB], SamplingParams(max_tokens=1), [0]), "0 .. 49"),
        (Submit([1], [-1], SamplingParams(max_tokens=1), [0]), "0 .. 49"),
        (Submit([1], [1], SamplingParams(max_tokens=1, logit_bias=((VOCAB, 1.0),)), [0]), "0 .. 49"),
        (Submit([1], [1], SamplingParams(max_tokens=1, allowed_ids=(VOCAB,)), [0]), "0 .. 49"),
        (Submit([1], [1], SamplingParams(max_tokens=1, bad_words=((1,), (2, -1))), [0]), "0 .. 49"),
        (Submit([1], [], SamplingParams(max_tokens=1), [0]), "empty"),
        (Submit([1], [1], SamplingParams(max_tokens=1), []), "one seed for each"),
    ],
)
def test_what_would_break_a_step_is_refused(message: Submit, words: str) -> None:
    world = World()
    world.server.inbox.append((1, message))
    world.turn(1)
    [(_, answer)] = world.server.sent
    assert isinstance(answer, Rejection)
    assert answer.code == "invalid"
    assert words in answer.message
    assert world.runner.steps == 0


def test_more_logprobs_than_a_frame_holds_are_refused() -> None:
    world = World(max_model_len=1 << 20)
    params = SamplingParams(max_tokens=0, prompt_logprobs=20)
    world.server.inbox.append((1, Submit([1], [1] * 220_000, params, [0])))
    world.turn(1)
    [(_, answer)] = world.server.sent
    assert isinstance(answer, Rejection)
    assert (answer.code, "ask for fewer" in answer.message) == ("too_long", True)


def test_prompts_that_were_read_go_alone_and_the_step_is_recorded_once() -> None:
    world = World()
    told = PromptResult([])
    result = world.runner.result
    world.runner.result = lambda plan: msgspec.structs.replace(result(plan), prompts={0: told, 2: told})  # type: ignore[method-assign]
    for seq_id in range(3):
        world.submit(seq_id)
    world.turn(1)
    frames = [message for _, message in world.server.sent if isinstance(message, Outputs)]
    assert [[output.seq_id for output in frame.outputs] for frame in frames] == [[0], [2], [1]]
    assert [len(frame.steps) for frame in frames] == [0, 0, 1]
    assert [output.first.prompt for output in world.server.outputs(1) if output.first] == [told, told, None]


def test_a_full_queue_is_told_with_the_time_to_come_back() -> None:
    world = World(max_waiting=1)
    for seq_id in range(3):
        world.submit(seq_id)
    world.turn(1)
    rejections = [m for _, m in world.server.sent if isinstance(m, Rejection)]
    assert [(r.seq_ids, r.code) for r in rejections] == [([1], "queue_full"), ([2], "queue_full")]
    assert all(r.retry_after_s is not None and r.retry_after_s >= 1 for r in rejections)


def test_who_waits_too_long_is_told_so() -> None:
    world = World(max_seqs=1)
    world.submit(1)
    world.submit(2, max_wait_s=5.0)
    world.turn(1)
    world.now = 6.0
    world.turn(1)
    assert [(o.seq_id, o.finish) for o in world.server.outputs(1)] == [(1, None), (2, "expired"), (1, None)]


def test_nothing_is_computed_while_gateways_have_much_to_read() -> None:
    world = World()
    world.server.congested = True
    world.submit(1)
    assert not world.loop.turn()
    assert world.runner.steps == 0
    world.server.congested = False
    assert world.loop.turn()
    assert len(world.server.outputs(1)) == 1


# --- steps in flight ---


def ahead(count: int = 1, **limits: int) -> World:
    world = World(**limits)
    world.runner.ahead = count
    return world


def records(world: World) -> list[StepRecord]:
    return [step for to, m in world.server.sent if to == 1 and isinstance(m, Outputs) for step in m.steps]


def test_the_next_step_is_launched_before_the_oldest_is_finished() -> None:
    world = ahead()
    world.submit(1)
    in_flight: list[int] = []
    world.runner.during = lambda: in_flight.append(len(world.runner.launched))
    world.turn(3)
    assert in_flight == [1, 1, 0]  # behind the one that is finished; the last token is known to be the last
    assert [o.finish for o in world.server.outputs(1)] == [None, None, "length"]
    assert not world.loop.turn()


def test_a_step_in_flight_is_finished_where_nothing_else_can_be_planned() -> None:
    world = ahead()
    world.server.inbox.append((1, Submit([1], [1], SamplingParams(max_tokens=1), [0])))
    assert world.loop.turn()
    assert [o.finish for o in world.server.outputs(1)] == ["length"]
    assert not world.loop.turn()


def test_less_is_launched_when_less_may_be_ahead() -> None:
    world = ahead()
    world.submit(1)
    world.turn(1)
    world.runner.ahead = 0
    world.turn(1)
    assert (len(world.runner.plans), len(world.runner.launched)) == (2, 0)


def test_steps_that_overlap_share_no_time() -> None:
    world = ahead()

    def second_passes() -> None:
        world.now += 1.0

    world.runner.during = second_passes
    world.submit(1)
    world.turn(3)
    assert [record.seconds for record in records(world)] == [1.0, 1.0, 1.0]


def test_nothing_between_steps_is_counted_as_a_step() -> None:
    world = ahead()
    for seq_id in range(2):
        world.submit(seq_id)
        world.turn(3)
        world.now += 60.0
    assert [record.seconds for record in records(world)] == [0.0] * 6


def test_what_is_cancelled_with_two_steps_in_flight_is_heard_of_no_more() -> None:
    world = ahead()
    world.submit(1)
    world.submit(2)
    world.turn(1)
    world.server.during_step = [(1, Abort([1]))]
    world.turn(3)
    assert [o.seq_id for o in world.server.outputs(1)] == [1, 2, 2, 2]
    assert world.scheduler.stats().blocks_used == 0


def test_a_step_that_cannot_be_launched_fails_after_those_before_it() -> None:
    world = ahead()
    world.submit(1)
    launch, world.runner.unlaunchable = world.runner.launch, 0

    def refuse_the_second(plan: StepPlan) -> None:
        world.runner.unlaunchable = int(plan.step == 2)
        launch(plan)

    world.runner.launch = refuse_the_second  # type: ignore[method-assign]
    world.turn(1)
    world.submit(2)
    assert len(world.runner.launched) == 0
    world.turn(1)  # and nothing is launched behind it
    assert [plan.step for plan in world.runner.plans] == [1]
    world.turn(3)
    assert [(o.seq_id, o.finish) for o in world.server.outputs(1)] == [
        (1, None),
        (1, "error"),
        (2, None),
        (2, None),
        (2, "length"),
    ]
    assert world.scheduler.stats().blocks_used == 0


def test_what_was_launched_behind_a_failed_step_is_finished() -> None:
    world = ahead(2, max_step_tokens=3)
    world.submit(1)
    world.submit(2)
    world.runner.broken = 1
    world.turn(5)
    assert [(o.seq_id, o.finish) for o in world.server.outputs(1)] == [
        (1, "error"),
        (2, None),
        (2, None),
        (2, "length"),
    ]
    assert (world.scheduler.stats().failed_steps, world.scheduler.stats().blocks_used) == (1, 0)


def test_the_engine_gives_up_when_all_that_is_in_flight_fails() -> None:
    world = ahead(2, max_step_tokens=3)
    world.runner.broken = 9
    for seq_id in range(4):
        world.submit(seq_id)
    with pytest.raises(StepsFail, match="3 steps in a row"):
        world.turn(3)


def test_congestion_lets_what_is_in_flight_end() -> None:
    world = ahead()
    world.submit(1)
    world.turn(1)
    world.server.congested = True
    assert world.loop.turn()
    assert not world.loop.turn()
    assert (world.runner.steps, len(world.runner.plans)) == (2, 2)
    world.server.congested = False
    world.turn(1)
    assert [o.finish for o in world.server.outputs(1)] == [None, None, "length"]
