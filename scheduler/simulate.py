"""A whole engine without a model or a wall clock: the real scheduler, a toy runner, and a cost for each step.

The toy model's next token is a hash of its whole context, read back block by block as a real runner would read keys
and values. So any scheduling mistake changes the text. Used by the tests, and to try out limits:

    report = Simulation(limits, num_blocks=400, cost=CostModel(0.004, 0.0002, 1e-7)).run(requests)
    report.ttfts_s, report.steps
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import blake2b

import msgspec

from scheduler.blocks import NUM_RESERVED, BlockPool
from scheduler.plan import Admit, Event, PromptResult, StepPlan, StepResult, TokenLogprob, Work
from scheduler.protocol import EngineStats
from scheduler.scheduler import Scheduler
from scheduler.types import FinishReason, Limits, Rejected, SamplingParams, Sequence

GARBAGE = -1  # what a step that raised leaves behind


class FakeClock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass(slots=True, frozen=True)
class CostModel:
    """Seconds of a step: a + b * tokens + c * context, and of the planning before it."""

    base_s: float = 0.001
    token_s: float = 0.0
    context_s: float = 0.0  # per key that a token attends to
    host_s: float = 0.0  # hidden behind the device when planning one step ahead

    def step_s(self, plan: StepPlan) -> float:
        context = sum(work.count * (work.start + work.count) for work in plan.works)
        return self.base_s + self.token_s * plan.num_tokens + self.context_s * context


@dataclass(slots=True, frozen=True)
class ToyModel:
    vocab_size: int = 64

    def next_token(self, context: list[int], params: SamplingParams, num_generated: int) -> int:
        banned = params.stop_ids if num_generated < params.min_tokens else ()
        data = struct.pack(f"<{len(context) + 1}q", params.seed, *context)
        while True:
            data = blake2b(data, digest_size=8).digest()
            token = int.from_bytes(data, "little") % self.vocab_size
            if token not in banned:
                return token

    def completes(self, token: int, params: SamplingParams) -> bool:
        """A toy grammar is a number: nothing may follow its multiples."""
        return params.grammar is not None and token % int(params.grammar) == 0

    def generate(self, prompt: list[int], params: SamplingParams, max_len: int) -> tuple[list[int], FinishReason]:
        """The oracle: what a sequence must say, whatever it is scheduled with."""
        generated: list[int] = []
        while params.max_tokens > 0:
            generated.append(self.next_token(prompt + generated, params, len(generated)))
            if generated[-1] in params.stop_ids or self.completes(generated[-1], params):
                return generated, "stop"
            if len(generated) == params.max_tokens or len(prompt) + len(generated) == max_len:
                return generated, "length"
        return generated, "length"

    def read(self, prompt: list[int], params: SamplingParams) -> PromptResult | None:
        """What a prompt is told of itself. Each number depends on all tokens before it."""
        if not params.reads_prompt:
            return None
        logprobs = [
            TokenLogprob(-self.next_token(prompt[:end], SamplingParams(1), 0), [], []) for end in range(1, len(prompt))
        ]
        embedding = struct.pack(f"<{len(prompt)}q", *prompt) if params.embed else None
        return PromptResult(logprobs if params.prompt_logprobs is not None else None, embedding)


@dataclass(slots=True)
class _Row:
    seq_id: int
    params: SamplingParams
    tokens: list[int]
    prompt_len: int
    blocks: list[int]
    seen: list[int] = field(default_factory=list)  # what was computed for this row, and not found in the cache


class ToyRunner:
    """Does what a runner does with a plan; its keys and values are the token ids themselves."""

    def __init__(self, model: ToyModel, block_size: int) -> None:
        self._model = model
        self._block_size = block_size
        self._rows: dict[int, _Row] = {}
        self._cache: dict[tuple[int, int], int] = {}  # (block, offset) -> token

    def execute(self, plan: StepPlan, crash: bool = False) -> StepResult | None:
        """None: the step raises half way, and everything it was to write is garbage."""
        self._update_rows(plan)
        if crash:
            for work in plan.works:
                row = self._rows[work.slot]
                self._write(row, work, [GARBAGE] * work.count)
                row.tokens += [GARBAGE] * work.sample
            return None
        # A work reads what earlier steps have written, never what this step writes for another row.
        contexts = [self._read(self._rows[work.slot], work.start) for work in plan.works]
        steps = [self._compute(work, context) for work, context in zip(plan.works, contexts, strict=True)]
        tokens = [token for token in steps if token is not None]
        rows = [self._rows[work.slot] for work in plan.works if work.sample]
        complete = [index for index, row in enumerate(rows) if self._model.completes(row.tokens[-1], row.params)]
        return StepResult(tokens, [], complete, prompts=self._prompts(plan))

    def _prompts(self, plan: StepPlan) -> dict[int, PromptResult]:
        """Of the rows that have just sampled their first token."""
        rows = [self._rows[work.slot] for work in plan.works if work.sample]
        told = {
            index: self._model.read(row.seen, row.params)
            for index, row in enumerate(rows)
            if len(row.tokens) == row.prompt_len + 1
        }
        return {index: result for index, result in told.items() if result is not None}

    def _compute(self, work: Work, context: list[int]) -> int | None:
        row = self._rows[work.slot]
        chunk = row.tokens[work.start : work.start + work.count]
        self._write(row, work, chunk)
        row.seen += chunk
        if not work.sample:
            return None
        row.tokens.append(self._model.next_token(context + chunk, row.params, len(row.tokens) - row.prompt_len))
        return row.tokens[-1]

    def block(self, block: int) -> list[int | None]:
        return [self._cache.get((block, offset)) for offset in range(self._block_size)]

    def blocks_of(self, plan: StepPlan) -> set[int]:
        return {block for work in plan.works for block in self._rows[work.slot].blocks}

    def seq_id(self, slot: int) -> int:
        return self._rows[slot].seq_id

    def _update_rows(self, plan: StepPlan) -> None:
        for slot in plan.releases:
            self._rows.pop(slot, None)
        for admit in plan.admits:
            self._admit(admit)
        for work in plan.works:
            self._rows[work.slot].blocks += work.new_blocks

    def _admit(self, admit: Admit) -> None:
        if admit.slot in self._rows:
            raise RuntimeError(f"slot {admit.slot} is taken")
        self._rows[admit.slot] = _Row(
            admit.seq_id, admit.params, admit.tokens.copy(), admit.prompt_len, admit.blocks.copy()
        )

    def _place(self, row: _Row, position: int) -> tuple[int, int]:
        return row.blocks[position // self._block_size], position % self._block_size

    def _read(self, row: _Row, end: int) -> list[int]:
        return [self._cache[self._place(row, position)] for position in range(end)]

    def _write(self, row: _Row, work: Work, chunk: list[int]) -> None:
        for position, token in enumerate(chunk, work.start):
            place = self._place(row, position)
            if place[0] < NUM_RESERVED:
                raise RuntimeError(f"position {position} is written to the reserved block {place[0]}")
            self._cache[place] = token


@dataclass(slots=True, frozen=True)
class Request:
    prompt: list[int]
    params: SamplingParams
    at: float = 0.0
    num_choices: int = 1
    priority: int = 0
    salt: bytes = b""
    max_wait_s: float | None = None
    tenant: int = 0


@dataclass(slots=True)
class Trace:
    """What the outside saw of one sequence."""

    request: Request
    arrived: float
    tokens: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)  # of the tokens
    num_first: int = 0  # events that claimed to be the first
    cached_tokens: int = 0
    prompt: PromptResult | None = None
    finish: FinishReason | None = None

    @property
    def ttft_s(self) -> float:
        return self.times[0] - self.arrived

    @property
    def itls_s(self) -> list[float]:
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)]


@dataclass(slots=True, frozen=True)
class Report:
    traces: dict[int, Trace]  # by sequence id, in the order of submission
    num_rejected: int
    seconds: float
    stats: EngineStats

    @property
    def texts(self) -> list[list[int]]:
        return [trace.tokens for trace in self.traces.values()]

    @property
    def ttfts_s(self) -> list[float]:
        return [trace.ttft_s for trace in self.traces.values() if trace.times]

    @property
    def steps(self) -> int:
        return self.stats.steps


@dataclass(slots=True, frozen=True)
class _Flight:
    plan: StepPlan
    result: StepResult | None  # None: it raised
    done: float
    blocks: set[int]  # that the step reads or writes


class Simulation:
    """`run` plays a workload; the other methods are its single moves, for tests that want another order of events."""

    def __init__(self, limits: Limits, num_blocks: int, cost: CostModel | None = None, depth: int = 1) -> None:
        self.clock = FakeClock()
        self.pool = BlockPool(num_blocks, limits.block_size)
        self.scheduler = Scheduler(limits, self.pool, self.clock)
        self.model = ToyModel()
        self.runner = ToyRunner(self.model, limits.block_size)
        self.traces: dict[int, Trace] = {}
        self.flights: deque[_Flight] = deque()
        self._cost = cost or CostModel()
        self._depth = depth  # plans in flight; 2 is one step ahead
        self._device_free = 0.0

    def submit(self, request: Request) -> list[Sequence]:
        """May raise Rejected."""
        now = self.clock()
        ids = range(len(self.traces), len(self.traces) + request.num_choices)
        seqs = [self._choice(request, seq_id, now) for seq_id in ids]
        self.scheduler.submit(seqs)
        self.traces |= {seq_id: Trace(request, now) for seq_id in ids}
        return seqs

    def _choice(self, request: Request, seq_id: int, now: float) -> Sequence:
        deadline = None if request.max_wait_s is None else now + request.max_wait_s
        params = msgspec.structs.replace(request.params, seed=seq_id)
        tokens = request.prompt.copy()
        return Sequence(
            seq_id, params, tokens, len(tokens), now, request.priority, deadline, request.salt, request.tenant
        )

    def move(self, seqs: list[Sequence]) -> list[Sequence]:
        """Unfinished choices of one request, as an engine gets them whose predecessor had them: under new ids, with the
        tokens that were seen. May raise Rejected."""
        traces = [self.traces[seq.id] for seq in seqs]
        now, request, has_begun = self.clock(), traces[0].request, any(trace.tokens for trace in traces)
        moved = [self._choice(request, id, now) for id in range(len(self.traces), len(self.traces) + len(seqs))]
        for seq, old, trace in zip(moved, seqs, traces, strict=True):
            self.scheduler.abort(old.id)
            seq.params = old.params
            seq.tokens += trace.tokens
            seq.deadline = None if has_begun else seq.deadline
        self.scheduler.submit(moved)
        for seq, trace in zip(moved, traces, strict=True):
            tokens, times = trace.tokens.copy(), trace.times.copy()
            seen = (trace.num_first, trace.cached_tokens, trace.prompt)
            self.traces[seq.id] = Trace(request, trace.arrived, tokens, times, *seen)
        return moved

    def launch(self, crash: bool = False) -> StepPlan | None:
        """Plans a step and starts it, behind those in flight."""
        plan = self.scheduler.plan()
        if plan is None:
            return None
        self.clock.now += self._cost.host_s
        self._device_free = max(self.clock(), self._device_free) + self._cost.step_s(plan)
        self._check_fence(plan)
        result = self.runner.execute(plan, crash)
        self.flights.append(_Flight(plan, result, self._device_free, self.runner.blocks_of(plan)))
        return plan

    def _check_fence(self, plan: StepPlan) -> None:
        """Nothing that a step in flight uses is handed out anew."""
        slots = {work.slot for flight in self.flights for work in flight.plan.works}
        blocks = {block for flight in self.flights for block in flight.blocks}
        given = [block for work in plan.works for block in work.new_blocks]
        for admit in plan.admits:
            given += admit.blocks[admit.start // self.pool.block_size :]
        if slots.intersection(admit.slot for admit in plan.admits) or blocks.intersection(given):
            raise RuntimeError(f"step {plan.step} takes what a step in flight still uses")

    def rows_of(self, plan: StepPlan) -> list[tuple[int, int, int]]:
        """(sequence, start, count) of each work: the plan as people read it."""
        return [(self.runner.seq_id(work.slot), work.start, work.count) for work in plan.works]

    def land(self) -> list[Event]:
        """Waits for the oldest step in flight and commits it, or reports its failure."""
        flight = self.flights.popleft()
        self.clock.now = max(self.clock(), flight.done)
        if flight.result is None:
            return self._record(self.scheduler.fail(flight.plan))
        return self._record(self.scheduler.commit(flight.plan, flight.result))

    def expire(self) -> list[Event]:
        return self._record(self.scheduler.expired())

    def _record(self, events: list[Event]) -> list[Event]:
        for event in events:
            trace = self.traces[event.seq_id]
            if trace.finish is not None:
                raise RuntimeError(f"sequence {event.seq_id} speaks after its end")
            trace.tokens += event.tokens
            trace.times += [self.clock()] * len(event.tokens)
            trace.num_first += event.first
            trace.cached_tokens += event.cached_tokens
            trace.prompt = event.prompt or trace.prompt
            trace.finish = event.finish
        return events

    def turn(self) -> list[Event]:
        """One round of the engine's loop: fill the pipeline, then take in the oldest result."""
        events = self.expire()
        while len(self.flights) < self._depth and self.launch() is not None:
            pass
        if self.flights:
            events += self.land()
        elif self.scheduler.has_work:
            raise RuntimeError("there is work, but no plan for it")
        return events

    def drain(self) -> None:
        """Turns until nothing is left to do."""
        while self.scheduler.has_work or self.flights:
            self.turn()

    def run(self, requests: Iterable[Request]) -> Report:
        waiting = deque(sorted(requests, key=lambda request: request.at))
        num_rejected = 0
        while waiting or self.scheduler.has_work or self.flights:
            if not self.scheduler.has_work and not self.flights:
                self.clock.now = max(self.clock(), waiting[0].at)
            while waiting and waiting[0].at <= self.clock():
                try:
                    self.submit(waiting.popleft())
                except Rejected:
                    num_rejected += 1
            self.turn()
        return Report(self.traces, num_rejected, self.clock(), self.scheduler.stats())
