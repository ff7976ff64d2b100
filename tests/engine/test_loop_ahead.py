"""The step loop one step ahead, over a toy model whose every token depends on its whole context: whatever is in flight,
and whatever happens meanwhile, each sequence says what it would have said alone."""

import random
from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from engine.compiling import CompileQueue
from engine.grammar import Matchers
from engine.loop import Loop
from engine.server import Gone
from scheduler.blocks import BlockPool
from scheduler.plan import StepPlan, StepResult
from scheduler.protocol import Abort, FromEngine, Output, Outputs, Rejection, StepRecord, Submit
from scheduler.scheduler import Scheduler
from scheduler.simulate import ToyModel, ToyRunner
from scheduler.types import Limits, SamplingParams

FAST = settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
MAX_TURNS = 3000


class Device:
    """Runs plans some time between their launch and their finish, in order. Now and then one raises."""

    def __init__(self, block_size: int, ahead: int, seed: int, failures: float, flips: bool) -> None:
        self.matchers = Matchers()
        self.num_in_flight = 0
        self.most_in_flight = 0
        self._toy = ToyRunner(ToyModel(), block_size)
        self._launched: deque[tuple[StepPlan, bool]] = deque()  # and whether it will raise
        self._run: deque[StepResult | None] = deque()  # results of the first of them
        self._most_ahead = ahead
        self._random = random.Random(seed)
        self._failures = failures
        self._flips = flips

    @property
    def ahead(self) -> int:
        return self._random.randint(0, self._most_ahead) if self._flips else self._most_ahead

    def launch(self, plan: StepPlan) -> None:
        if self._raises():
            # Rows that were never admitted are released later on, and that is no error.
            self._toy.execute(StepPlan(plan.step, plan.releases, [], []))
            raise RuntimeError("the device takes nothing")
        self._launched.append((plan, self._raises()))
        self.num_in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.num_in_flight)
        if self._random.random() < 0.5:
            self._catch_up()

    def finish(self) -> StepResult:
        self._catch_up()
        self.num_in_flight -= 1
        result = self._run.popleft()
        if result is None:
            raise RuntimeError("the device is on fire")
        return result

    def _catch_up(self) -> None:
        while self._launched:
            self._run.append(self._toy.execute(*self._launched.popleft()))

    def _raises(self) -> bool:
        return self._failures > 0 and self._random.random() < self._failures


class Script:
    """A server whose gateways do at each turn what was written down."""

    def __init__(self) -> None:
        self.connections = [1, 2]
        self.congested = False
        self.inbox: list[tuple[int, Submit | Abort | Gone]] = []
        self.during_step: list[tuple[int, Abort | Gone]] = []
        self.tokens: dict[tuple[int, int], list[int]] = defaultdict(list)
        self.finishes: dict[tuple[int, int], str] = {}
        self.rejected: set[tuple[int, int]] = set()
        self.silenced: set[tuple[int, int]] = set()  # by an abort that the loop has taken
        self.records: list[StepRecord] = []

    def take(self) -> list[tuple[int, Submit | Abort | Gone]]:
        taken, self.inbox = self.inbox, []
        self._silence(taken)
        return taken

    def take_aborts(self) -> list[tuple[int, Abort | Gone]]:
        """And once more with the inbox, as from a real server."""
        taken, self.during_step = self.during_step, []
        self.inbox += taken
        self._silence(taken)
        return taken

    def _silence(self, messages: Iterable[tuple[int, Submit | Abort | Gone]]) -> None:
        for connection, message in messages:
            if isinstance(message, Abort):
                self.silenced.update((connection, seq_id) for seq_id in message.seq_ids)

    def send(self, connection: int, message: FromEngine) -> None:
        if isinstance(message, Rejection):
            self.rejected.update((connection, seq_id) for seq_id in message.seq_ids)
        if isinstance(message, Outputs):
            self.records += message.steps
            for output in message.outputs:
                self._note(connection, output)

    def _note(self, connection: int, output: Output) -> None:
        key = (connection, output.seq_id)
        assert key not in self.finishes, "a sequence speaks after its end"
        assert key not in self.silenced, "an aborted sequence speaks"
        assert (output.first is not None) == (not self.tokens[key] and output.finish not in ("error", "expired"))
        self.tokens[key] += output.tokens
        if output.finish is not None:
            self.finishes[key] = output.finish

    def wait(self, seconds: float) -> None:
        raise AssertionError("nobody idles here")

    def wake(self) -> None:
        pass


@dataclass(frozen=True)
class Arrival:
    turn: int
    connection: int
    prompt: list[int]
    params: SamplingParams
    num_choices: int
    priority: int
    max_wait_s: float | None
    abort_after: int | None  # turns
    abort_during: bool  # while a step runs, not between two


@dataclass(frozen=True)
class Case:
    arrivals: list[Arrival]
    limits: Limits
    num_blocks: int


@dataclass
class Played:
    server: Script
    device: Device
    scheduler: Scheduler
    asked: dict[tuple[int, int], tuple[Arrival, SamplingParams]] = field(default_factory=dict)
    aborted: set[tuple[int, int]] = field(default_factory=set)
    texts: dict[tuple[int, int], tuple[list[int], str | None]] = field(default_factory=dict)


arrivals = st.builds(
    Arrival,
    turn=st.integers(0, 25),
    connection=st.sampled_from([1, 1, 2]),
    # Few different tokens and a shared beginning: prefixes meet, blocks are shared, twins are computed.
    prompt=st.one_of(
        st.integers(1, 14).map(lambda num: list(range(1, num + 1))),
        st.lists(st.integers(1, 2), min_size=1, max_size=10),
    ),
    params=st.builds(
        SamplingParams,
        max_tokens=st.sampled_from([0, 1, 1, 2, 5, 9, 14]),
        min_tokens=st.integers(0, 3),
        stop_ids=st.sampled_from([(), tuple(range(8)), tuple(range(32))]),
    ),
    num_choices=st.sampled_from([1, 1, 1, 2, 3]),
    priority=st.sampled_from([0, 0, 0, -1, 1]),
    max_wait_s=st.sampled_from([None, None, None, 4.0]),
    abort_after=st.sampled_from([None, None, 0, 1, 2, 6]),
    abort_during=st.booleans(),
)
cases = st.builds(
    Case,
    arrivals=st.lists(arrivals, min_size=1, max_size=10),
    limits=st.builds(
        Limits,
        max_seqs=st.integers(1, 5),
        max_step_tokens=st.integers(1, 16),
        max_model_len=st.integers(8, 30),
        block_size=st.integers(1, 4),
        max_waiting=st.integers(3, 12),
        watermark=st.sampled_from([0.0, 0.2]),
        mixed_prompt_tokens=st.one_of(st.none(), st.integers(1, 6)),
        chunk_cap=st.one_of(st.none(), st.integers(1, 6)),
        prefix_caching=st.booleans(),
    ),
    num_blocks=st.integers(2 + 4, 2 + 20),
)


def play(case: Case, ahead: int, seed: int = 0, failures: float = 0.0, flips: bool = False) -> Played:
    """Every arrival and abort in its turn, then turns until all is over."""
    now = [0.0]
    pool = BlockPool(case.num_blocks, case.limits.block_size)
    scheduler = Scheduler(case.limits, pool, lambda: now[0])
    played = Played(Script(), Device(case.limits.block_size, ahead, seed, failures, flips), scheduler)
    server = played.server
    grammars = CompileQueue(lambda told: NotImplemented, server.wake, lambda: now[0])
    loop = Loop(scheduler, played.device, server, 64, grammars, lambda: now[0])  # type: ignore[arg-type]
    last = max(arrival.turn + (arrival.abort_after or 0) for arrival in case.arrivals)
    for turn in range(MAX_TURNS):
        enact(case, turn, played)
        busy = loop.turn()
        scheduler.check()
        now[0] += 1.0
        assert busy or not scheduler.has_work, "there is work, and it rests"
        if not busy and turn > last:
            break
    else:
        raise AssertionError("it does not come to an end")
    assert played.device.num_in_flight == 0
    assert pool.free == pool.usable
    for key in played.asked:
        played.texts[key] = server.tokens[key], server.finishes.get(key)
    return played


def enact(case: Case, turn: int, played: Played) -> None:
    server = played.server
    for index, arrival in enumerate(case.arrivals):
        seq_ids = [index * 10 + choice for choice in range(arrival.num_choices)]
        keys = [(arrival.connection, seq_id) for seq_id in seq_ids]
        if arrival.turn == turn:
            message = Submit(seq_ids, arrival.prompt, arrival.params, seq_ids, arrival.priority, arrival.max_wait_s)
            server.inbox.append((arrival.connection, message))
            played.asked |= {key: (arrival, SamplingParams(**params_of(arrival, key[1]))) for key in keys}
        if arrival.abort_after is not None and arrival.turn + arrival.abort_after == turn:
            aborts = server.during_step if arrival.abort_during else server.inbox
            aborts.append((arrival.connection, Abort(seq_ids)))  # type: ignore[arg-type]
            played.aborted.update(keys)


def params_of(arrival: Arrival, seed: int) -> dict[str, object]:
    names = arrival.params.__struct_fields__
    return {name: getattr(arrival.params, name) for name in names} | {"seed": seed}


def says_what_it_would_alone(case: Case, played: Played) -> None:
    """In full where it was let; else a beginning of it."""
    room = (case.num_blocks - 2) * case.limits.block_size + 1
    for key, (arrival, params) in played.asked.items():
        tokens, finish = played.texts[key]
        text = ToyModel().generate(arrival.prompt, params, min(case.limits.max_model_len, room))
        if finish in ("stop", "length"):
            assert (tokens, finish) == text
        else:
            assert tokens == text[0][: len(tokens)]
            assert finish in ("error", "expired") or key in played.aborted or key in played.server.rejected
            assert finish != "expired" or not tokens


@FAST
@given(case=cases, ahead=st.integers(0, 2), seed=st.integers(0, 1 << 16), flips=st.booleans())
def test_the_text_depends_on_nothing_that_is_in_flight(case: Case, ahead: int, seed: int, flips: bool) -> None:
    played = play(case, ahead, seed, flips=flips)
    says_what_it_would_alone(case, played)
    assert "error" not in played.server.finishes.values()
    assert played.device.most_in_flight <= 1 + ahead
    assert len(played.server.records) == played.scheduler.stats().steps
    assert all(record.seconds >= 0 for record in played.server.records)


@FAST
@given(case=cases, seed=st.integers(0, 1 << 16))
def test_a_step_ahead_changes_no_text_and_loses_no_sequence(case: Case, seed: int) -> None:
    """Where nothing depends on how long a turn is: every sequence ends, and with the same words."""
    calm = [
        Arrival(a.turn, a.connection, a.prompt, a.params, a.num_choices, a.priority, None, None, False)
        for a in case.arrivals
    ]
    limits = Limits(**{name: getattr(case.limits, name) for name in case.limits.__slots__} | {"max_waiting": 1000})
    case = Case(calm, limits, case.num_blocks)
    alone, ahead, flipping = play(case, 0), play(case, 1), play(case, 1, seed, flips=True)
    assert alone.texts == ahead.texts == flipping.texts
    assert alone.server.rejected == ahead.server.rejected == flipping.server.rejected
    finishes = [played.server.finishes.keys() | played.server.rejected for played in (alone, ahead, flipping)]
    assert finishes == [alone.asked.keys()] * 3


@FAST
@given(case=cases, ahead=st.integers(0, 2), seed=st.integers(0, 1 << 16))
def test_steps_that_fail_take_their_own_sequences_only(case: Case, ahead: int, seed: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("engine.loop.MAX_FAILED_STEPS", MAX_TURNS)
        played = play(case, ahead, seed, failures=0.1)
    says_what_it_would_alone(case, played)


def test_a_crowded_little_engine_meets_everything() -> None:
    """The cases above are only worth their names if preemption, hits and overlap do happen at such sizes."""
    arrivals = [
        Arrival(index % 3, 1, [1, 2, 3, 4, 5, index % 2], SamplingParams(9), 2, 0, None, None, False)
        for index in range(8)
    ]
    limits = Limits(4, 8, 30, 2, watermark=0.0, chunk_cap=4)
    for ahead in (0, 1, 2):
        played = play(Case(arrivals, limits, 2 + 10), ahead)
        stats = played.scheduler.stats()
        assert played.device.most_in_flight == 1 + ahead
        assert min(stats.preemptions, stats.recomputed_tokens, stats.prefix_hits) > 0
