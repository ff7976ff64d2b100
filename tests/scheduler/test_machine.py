"""Any order of submissions, aborts, steps, failures and time: the invariants hold, and every text is the oracle's."""

import itertools
from typing import Any

import hypothesis.strategies as st
from hypothesis import HealthCheck, given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from scheduler.plan import Event, StepPlan
from scheduler.simulate import CostModel, Request, Simulation
from scheduler.types import Limits, Phase, Rejected, SamplingParams, Sequence

FAST = settings(
    max_examples=250,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)

# Few different tokens and a shared beginning: prefixes meet, blocks are shared, twins are computed.
prompts = st.one_of(
    st.integers(1, 14).map(lambda num: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14][:num]),
    st.lists(st.integers(1, 2), min_size=1, max_size=10),
)
params = st.builds(
    SamplingParams,
    max_tokens=st.integers(0, 14),
    min_tokens=st.integers(0, 3),
    stop_ids=st.sampled_from([(), tuple(range(8)), tuple(range(32))]),
    grammar=st.sampled_from([None, None, "5"]),
    prompt_logprobs=st.sampled_from([None, None, 2]),
    embed=st.sampled_from([False, False, True]),
)
requests = st.builds(
    Request,
    prompt=prompts,
    params=params,
    num_choices=st.sampled_from([1, 1, 1, 2, 3]),
    priority=st.sampled_from([0, 0, 0, -1, 1]),
    salt=st.sampled_from([b"", b"", b"other"]),
    max_wait_s=st.sampled_from([None, None, None, 3.0]),
    tenant=st.sampled_from([0, 0, 1, 2]),
)
limits = st.builds(
    Limits,
    max_seqs=st.integers(1, 5),
    max_step_tokens=st.integers(1, 16),
    max_model_len=st.integers(8, 30),
    block_size=st.integers(1, 4),
    max_waiting=st.integers(3, 12),
    max_waiting_tokens=st.integers(20, 100),
    watermark=st.sampled_from([0.0, 0.0, 0.2]),
    mixed_prompt_tokens=st.one_of(st.none(), st.integers(1, 6)),
    chunk_cap=st.one_of(st.none(), st.integers(1, 6)),
    prefix_caching=st.booleans(),
    fairness=st.booleans(),
)


def oracle(sim: Simulation, seq: Sequence) -> tuple[list[int], str]:
    room = sim.pool.usable * sim.pool.block_size + 1
    max_len = min(sim.scheduler.limits.max_model_len, room)
    return sim.model.generate(seq.tokens[: seq.prompt_len], seq.params, max_len)


class Engine(RuleBasedStateMachine):
    @initialize(limits=limits, num_blocks=st.integers(2 + 4, 2 + 14), depth=st.sampled_from([1, 2, 2, 3]))
    def start(self, limits: Limits, num_blocks: int, depth: int) -> None:
        self.limits = limits
        self.depth = depth
        self.sim = Simulation(limits, num_blocks, CostModel(1.0), depth)
        self.seqs: list[Sequence] = []
        self.aborted: set[int] = set()
        self.leader_of: dict[int, int] = {}

    # --- what happens to it ---

    @rule(request=requests)
    def submit(self, request: Request) -> None:
        waiting = self.sim.scheduler.stats().waiting
        try:
            seqs = self.sim.submit(request)
            self.seqs += seqs
            self.leader_of |= {seq.id: seqs[0].id for seq in seqs[1:]}
        except Rejected as refusal:
            assert refusal.code in ("queue_full", "too_long", "never_fits")
            assert (refusal.retry_after_s is not None) == (refusal.code == "queue_full")
            assert self.sim.scheduler.stats().waiting == waiting

    @precondition(lambda self: self.seqs)
    @rule(data=st.data())
    def submit_again(self, data: st.DataObject) -> None:
        """The same prompt as before, which the cache may know."""
        self.submit(data.draw(st.sampled_from(list(self.sim.traces.values()))).request)

    @precondition(lambda self: self.seqs)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        seq = data.draw(st.sampled_from(self.seqs))
        live = seq.phase is not Phase.FINISHED
        assert self.sim.scheduler.abort(seq.id) == live
        if live:
            self.aborted.add(seq.id)

    @precondition(lambda self: any(seq.phase is not Phase.FINISHED for seq in self.seqs))
    @rule(data=st.data())
    def move(self, data: st.DataObject) -> None:
        """What is left of a request comes again with its tokens, as if another engine had died under it."""
        some = data.draw(st.sampled_from([seq for seq in self.seqs if seq.phase is not Phase.FINISHED]))
        leader = self.leader_of.get(some.id, some.id)
        group = [seq for seq in self.seqs if leader in (seq.id, self.leader_of.get(seq.id))]
        left = [seq for seq in group if seq.phase is not Phase.FINISHED]
        self.aborted.update(seq.id for seq in left)
        try:
            moved = self.sim.move(left)
        except Rejected as refusal:
            assert refusal.code == "queue_full"
            return
        self.seqs += moved
        self.leader_of |= {seq.id: moved[0].id for seq in moved[1:]}

    @precondition(lambda self: len(self.sim.flights) < self.depth)
    @rule(crash=st.sampled_from([False] * 9 + [True]))
    def launch(self, crash: bool) -> None:
        idle = not self.sim.flights
        work = self.sim.scheduler.has_work
        plan = self.sim.launch(crash)
        if plan is not None:
            self.respects_the_limits(plan)
            self.enters_in_order(plan)
        else:
            assert not (idle and work), "there is work, nothing in flight, and no plan"

    @precondition(lambda self: self.sim.flights)
    @rule()
    def land(self) -> None:
        self.allowed(self.sim.land())

    @rule()
    def expire(self) -> None:
        self.allowed(self.sim.expire())

    @rule(seconds=st.sampled_from([0.1, 1.0, 4.0]))
    def wait(self, seconds: float) -> None:
        self.sim.clock.now += seconds

    @rule(num=st.integers(1, 5))
    def turns(self, num: int) -> None:
        for _ in range(num):
            if self.sim.scheduler.has_work or self.sim.flights:
                self.allowed(self.sim.turn())
                self.holds()

    # --- what must be true of it ---

    def respects_the_limits(self, plan: StepPlan) -> None:
        assert plan.works
        assert plan.num_tokens <= self.limits.max_step_tokens
        assert len({work.slot for work in plan.works}) == len(plan.works) <= self.limits.max_seqs
        assert all(work.count > 0 for work in plan.works)
        for admit in plan.admits:
            assert admit.start < len(admit.tokens) <= len(admit.blocks) * self.limits.block_size

    def enters_in_order(self, plan: StepPlan) -> None:
        """Nobody overtakes a higher priority, nor within one another of its tenant, except the followers that had to
        wait for their leader."""
        for admit in plan.admits:
            (seq,) = [seq for seq in self.seqs if seq.id == admit.seq_id]
            before = [other for other in self.seqs if other.order < seq.order and other.priority <= seq.priority]
            waiting = [other for other in before if other.phase is Phase.WAITING and other.leader is None]
            assert not any(other.tenant == seq.tenant or other.priority < seq.priority for other in waiting)

    def allowed(self, events: list[Event]) -> None:
        for event in events:
            assert event.seq_id not in self.aborted, "an aborted sequence speaks"
            leader = self.leader_of.get(event.seq_id)
            if event.first and leader is not None:
                trace = self.sim.traces[leader]
                assert trace.num_first or trace.finish or leader in self.aborted, "a follower speaks before its leader"

    @invariant()
    def holds(self) -> None:
        self.sim.scheduler.check()
        self.no_block_is_shared_by_mistake()
        self.published_blocks_hold_what_they_say()

    def no_block_is_shared_by_mistake(self) -> None:
        owners: dict[int, tuple[int, bytes | None]] = {}
        for seq in self.seqs:
            for i, block in enumerate(seq.blocks):
                assert block > 1
                known = (i, seq.hashes[i] if i < len(seq.hashes) else None)
                assert owners.setdefault(block, known) == known
                if known[1] is None:
                    owners[block] = (i, b"private to %d" % seq.id)

    def published_blocks_hold_what_they_say(self) -> None:
        size = self.limits.block_size
        for seq in self.seqs:
            for i, digest in enumerate(seq.hashes):
                block = self.sim.pool.find(digest)
                assert block is None or self.sim.runner.block(block) == seq.tokens[i * size : (i + 1) * size]

    def teardown(self) -> None:
        if not hasattr(self, "sim"):
            return
        for _ in range(3000):
            if not self.sim.scheduler.has_work and not self.sim.flights:
                break
            self.allowed(self.sim.turn())
            self.holds()
        assert not self.sim.scheduler.has_work, "it does not come to an end"
        assert self.sim.pool.free == self.sim.pool.usable
        for seq in self.seqs:
            self.said_the_right_thing(seq)

    def said_the_right_thing(self, seq: Sequence) -> None:
        trace = self.sim.traces[seq.id]
        text, finish = oracle(self.sim, seq)
        assert trace.finish == seq.finish
        assert trace.num_first == (1 if trace.tokens or trace.finish == "length" else 0)
        assert trace.prompt == (
            self.sim.model.read(seq.tokens[: seq.prompt_len], seq.params) if trace.num_first else None
        )
        if seq.id in self.aborted:
            assert trace.finish is None
        elif trace.finish in ("stop", "length"):
            assert (trace.tokens, trace.finish) == (text, finish)
        else:
            assert trace.finish == "error" or not trace.tokens
        assert trace.tokens == text[: len(trace.tokens)]


Engine.TestCase.settings = FAST
TestEngine = Engine.TestCase


@settings(FAST, max_examples=150)
@given(
    workload=st.lists(st.tuples(requests, st.integers(0, 20)), min_size=1, max_size=8),
    limits=limits,
    num_blocks=st.integers(2 + 10, 2 + 20),
    depth=st.integers(1, 3),
)
def test_the_text_depends_on_nothing_but_the_request(
    workload: list[tuple[Request, int]], limits: Limits, num_blocks: int, depth: int
) -> None:
    """Caching, chunks, preemption, planning ahead and the rest of the batch change when a token comes, not which."""
    sim = Simulation(limits, num_blocks, CostModel(1.0), depth)
    pending = sorted(workload, key=lambda item: item[1])
    seqs: list[Sequence] = []
    for request, turns in pending:
        for _ in range(turns):
            if sim.scheduler.has_work:
                sim.turn()
        try:
            seqs += sim.submit(request)
        except Rejected:
            continue
    sim.drain()
    for seq in seqs:
        if sim.traces[seq.id].finish != "expired":
            trace = sim.traces[seq.id]
            assert (trace.tokens, trace.finish) == oracle(sim, seq)
            assert trace.prompt == sim.model.read(seq.tokens[: seq.prompt_len], seq.params)


def test_a_crowded_little_engine_meets_everything() -> None:
    """The machine above is only worth its name if preemption, hits and sharing do happen at such sizes."""
    shapes = itertools.product([1, 2, 3], [True, False])
    for depth, prefix_caching in shapes:
        limits = Limits(4, 8, 30, 2, watermark=0.0, chunk_cap=4, prefix_caching=prefix_caching)
        sim = Simulation(limits, 2 + 10, CostModel(1.0), depth)
        options: dict[str, Any] = {"num_choices": 2, "priority": 0}
        for i in range(8):
            sim.submit(Request([1, 2, 3, 4, 5, i % 2], SamplingParams(9), **options))
        sim.drain()
        stats = sim.scheduler.stats()
        assert stats.preemptions > 0
        assert stats.recomputed_tokens > 0
        assert stats.prefix_hits > 0
