"""Who computes what in the next step: a pure state machine, called by the engine's loop.

    submit -> waiting --admission--> running --stop, length, error, abort--> gone
                 ^                      |
                 +------preemption------+

`plan` moves a sequence's `computed` forward at once, and counts the token it will sample in `in_flight`; so the next
step can be planned before this one is committed. What comes back for a sequence that is gone by then is dropped.

    tokens      [ prompt ............ | generated ... ]( in_flight )
    computed    [ keys and values, once the plans in flight are committed ]
    remaining                                        [ at least the last token ]
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

import msgspec

from scheduler import delays, policy
from scheduler.blocks import BlockPool, SlotPool
from scheduler.plan import Admit, Event, StepPlan, StepResult, Work
from scheduler.prefix import ChainHasher
from scheduler.protocol import EngineStats, Snapshot, WaitReason
from scheduler.queue import WaitingQueue
from scheduler.snapshot import Scene
from scheduler.stats import AnswerLength, Counters, Pace, TokenRate
from scheduler.types import FinishReason, Limits, Phase, Rejected, Sequence


@dataclass(slots=True)
class _Draft:
    """A plan in the making."""

    budget: int
    admits: list[Admit] = field(default_factory=list)
    works: list[Work] = field(default_factory=list)
    seqs: list[Sequence] = field(default_factory=list)  # of the works
    num_decodes: int = 0  # the first of the works
    starved: list[Sequence] = field(default_factory=list)  # prompts that others' left no tokens for


@dataclass(slots=True, frozen=True)
class _Flight:
    """A plan that is neither committed nor failed yet."""

    plan: StepPlan
    draft: _Draft
    started: float


class Scheduler:
    """Decides each step's work under one token budget, and owns all sequences, blocks and slots.

    `commit` or `fail` every plan, in the order they were made. Several may be in flight.
    """

    def __init__(self, limits: Limits, pool: BlockPool, clock: Callable[[], float]) -> None:
        if limits.block_size != pool.block_size:
            raise ValueError(f"limits say blocks of {limits.block_size} tokens, the pool has {pool.block_size}")
        self.limits = limits
        self._pool = pool
        self._clock = clock
        # Every running sequence gets its next token in every step, so more rows than budget would starve some.
        self._slots = SlotPool(min(limits.max_seqs, limits.max_step_tokens))
        self._answers = AnswerLength()
        self._queue = WaitingQueue(expected=self._answer_left)
        self._hasher = ChainHasher(limits.block_size)
        self._watermark = math.ceil(limits.watermark * pool.usable)
        self._live: dict[int, Sequence] = {}
        self._running: dict[int, Sequence] = {}  # in the order of admission
        self._flights: deque[_Flight] = deque()
        self._released: list[int] = []  # slots that the next plan tells the runner to forget
        self._last_step = 0  # of the last plan made; the fence of whatever is released now
        self._last_order = 0
        self._last_victim: int | None = None
        self._unread = 0  # prompt tokens of running sequences that the last plan has left over
        self._burst = False  # more prompt tokens than one step takes have come, and are not through yet
        self._waits_for: WaitReason = "step"
        self._waits = delays.WaitTotals()
        self._shares = delays.PrefillShares()
        self._counters = Counters()
        self._rate = TokenRate()
        self._pace = Pace()

    @property
    def has_work(self) -> bool:
        """Some sequence has not ended. With no plan in flight, `plan` then returns one."""
        return bool(self._live)

    # --- from the gateway ---

    def submit(self, seqs: list[Sequence]) -> None:
        """All choices of one request, or none. The first is the leader, whose prompt blocks the others share, and who
        alone is told what was asked about the prompt. What they have generated elsewhere counts as theirs.

        Raises Rejected: too_long, never_fits, queue_full.
        """
        ids = {seq.id for seq in seqs}
        if len(ids) != len(seqs) or not ids.isdisjoint(self._live):
            raise ValueError(f"sequence ids {sorted(ids)} are not new")
        if any(not 0 < seq.prompt_len <= len(seq.tokens) for seq in seqs):
            raise ValueError(f"a prompt of sequences {sorted(ids)} is empty, or more than they have")
        if any(seq.num_generated and seq.num_generated >= seq.params.max_tokens for seq in seqs):
            raise ValueError(f"of sequences {sorted(ids)} some have generated all they may")
        self._refuse_impossible(seqs)
        self._refuse_when_full(seqs)
        if not self.limits.prefix_caching:
            self._isolate(seqs)
        for seq in seqs:
            seq.tenant = seq.tenant if self.limits.fairness else 0
            self._enlist(seq)
        leader, *followers = seqs
        self._queue.push(leader)
        leader.predicted_s = self._shares.prompt_rate.seconds_for(
            self._queue.tokens_before(leader.tenant) + self._unread
        )
        for seq in followers:
            seq.params = msgspec.structs.replace(seq.params, prompt_logprobs=None, embed=False)
            self._queue.park(seq, leader.id)

    def _refuse_impossible(self, seqs: list[Sequence]) -> None:
        limits, pool = self.limits, self._pool
        longest = max(len(seq.tokens) for seq in seqs)
        least = max(len(seq.tokens) + min(seq.params.max_tokens, 1) for seq in seqs)
        if least > limits.max_model_len:
            raise Rejected(
                "too_long", f"the prompt has {longest} tokens; the model's context holds {limits.max_model_len}"
            )
        if policy.blocks_for(least, pool.block_size) > pool.usable:
            room = pool.usable * pool.block_size
            raise Rejected("never_fits", f"the prompt has {longest} tokens; the key/value cache holds {room}")

    def _refuse_when_full(self, seqs: list[Sequence]) -> None:
        limits, queue = self.limits, self._queue
        num_tokens = queue.num_tokens + sum(len(seq.tokens) for seq in seqs)
        too_many = len(queue) + len(seqs) > limits.max_waiting or num_tokens > limits.max_waiting_tokens
        # A request that alone is over a limit would otherwise be told for ever to come back later.
        if len(queue) > 0 and too_many:
            message = f"{len(queue)} sequences with {queue.num_tokens} tokens are waiting already"
            raise Rejected("queue_full", message, self._rate.retry_after_s(queue.num_tokens))

    def _isolate(self, seqs: list[Sequence]) -> None:
        """No other request finds their blocks. Choices of one request still do, by a salt of their own."""
        for seq in seqs:
            seq.cacheable = len(seqs) > 1
            seq.salt += b"/%d" % self._last_order

    def _enlist(self, seq: Sequence) -> None:
        self._last_order += 1
        seq.order = self._last_order
        seq.max_len = min(
            seq.prompt_len + seq.params.max_tokens,
            self.limits.max_model_len,
            # The last token needs no keys and values. So a sequence alone always has blocks to go on.
            self._pool.usable * self._pool.block_size + 1,
        )
        self._live[seq.id] = seq
        seq.enlisted = self._clock()
        delays.enlist(seq, self._waits, seq.enlisted)

    def abort(self, seq_id: int) -> bool:
        """Forgets the sequence, whatever its phase, without an event. False: it is not here (any more)."""
        seq = self._live.get(seq_id)
        if seq is None:
            return False
        self._end(seq, None)
        return True

    def expired(self) -> list[Event]:
        """Ends the sequences that have waited past their deadline."""
        late = self._queue.expired(self._clock())
        return [self._finish(seq, "expired") for seq in late]

    # --- one step ---

    def plan(self) -> StepPlan | None:
        """The next step's work. None: nothing to do, or nothing before a plan in flight is committed."""
        draft = _Draft(self.limits.max_step_tokens)
        decodes, prompts = self._sort_running()
        num_growing = self._num_full(decodes)
        calm = num_growing <= self._pool.free
        if not calm:
            self._make_room(num_growing)
        self._plan_decodes(draft, decodes)
        draft.num_decodes = len(draft.works)
        draft.budget = self._prompt_budget(draft, prompts)
        self._plan_prompts(draft, prompts)
        self._waits_for = self._plan_admissions(draft) if calm else "blocks"
        self._waits.turn(self._waits_for, self._clock())
        prompts_left = (*draft.seqs[draft.num_decodes :], *draft.starved)
        self._unread = sum([len(seq.tokens) - seq.computed for seq in prompts_left])
        return self._launch(draft) if draft.works else None

    def _launch(self, draft: _Draft) -> StepPlan:
        self._last_step += 1
        plan = StepPlan(self._last_step, self._released, draft.admits, draft.works)
        self._released = []
        self._flights.append(_Flight(plan, draft, self._clock()))
        return plan

    def _sort_running(self) -> tuple[list[Sequence], list[Sequence]]:
        """Those that need their next token, and those in the middle of their prompt."""
        decodes: list[Sequence] = []
        prompts: list[Sequence] = []
        for seq in self._running.values():
            length = len(seq.tokens) + seq.in_flight
            if length - seq.computed > 1:
                prompts.append(seq)
            elif length < seq.max_len or not seq.in_flight:  # or else the token in flight is its last
                decodes.append(seq)
        return decodes, prompts

    def _num_full(self, seqs: list[Sequence]) -> int:
        size = self._pool.block_size
        return sum([seq.computed == len(seq.blocks) * size for seq in seqs])

    def _is_full(self, seq: Sequence) -> bool:
        return seq.computed == len(seq.blocks) * self._pool.block_size

    def _make_room(self, num_growing: int) -> None:
        """Preempts until every sequence that needs a block can have one, at once or when its fence falls."""
        while num_growing > self._pool.free + self._pool.fenced:
            seq = policy.victim(self._running.values(), self._last_victim)
            num_growing -= self._needs_block(seq)
            self._preempt(seq)

    def _needs_block(self, seq: Sequence) -> bool:
        return self._is_full(seq) and len(seq.tokens) + seq.in_flight < seq.max_len

    def _plan_decodes(self, draft: _Draft, decodes: list[Sequence]) -> None:
        for seq in decodes:
            if seq.phase is not Phase.RUNNING:
                continue
            new_blocks: list[int] = []
            if self._is_full(seq):
                grown = self._pool.allocate(1)
                if grown is None:
                    continue  # its block is fenced: next step
                new_blocks = grown
                seq.blocks += grown
            self._work(draft, seq, 1, new_blocks)

    def _prompt_budget(self, draft: _Draft, prompts: list[Sequence]) -> int:
        waiting = self._queue.num_tokens + sum([len(seq.tokens) - seq.computed for seq in prompts])
        self._burst = policy.is_burst(waiting, self.limits.max_step_tokens, self._burst)
        return policy.prompt_budget(draft.budget, len(draft.works), self.limits.mixed_prompt_tokens, self._burst)

    def _plan_prompts(self, draft: _Draft, prompts: list[Sequence]) -> None:
        prompts.sort(key=lambda seq: (seq.priority, seq.order))
        crowded = len(prompts) + self._queue.num_ready > 1
        for seq in prompts:
            if seq.phase is Phase.RUNNING and draft.budget > 0:
                self._work(draft, seq, self._chunk(seq, draft.budget, crowded), [])
            else:
                draft.starved.append(seq)

    def _chunk(self, seq: Sequence, budget: int, crowded: bool) -> int:
        cap = self.limits.chunk_cap
        limit = min(budget, cap) if crowded and cap is not None else budget
        return policy.chunk_size(seq.computed, len(seq.tokens) - seq.computed, limit, self._pool.block_size)

    def _work(self, draft: _Draft, seq: Sequence, count: int, new_blocks: list[int]) -> None:
        start = seq.computed
        seq.computed = start + count
        sample = seq.computed == len(seq.tokens) + seq.in_flight
        seq.in_flight += sample
        draft.budget -= count
        draft.works.append(Work(seq.slot, start, count, new_blocks, sample))
        draft.seqs.append(seq)

    def _plan_admissions(self, draft: _Draft) -> WaitReason:
        """In the queue's order; the first that has to wait holds back all behind it, so that nobody starves. Returns
        what it waits for."""
        while draft.budget > 0 and self._slots.free > 0:
            seq = self._queue.head()
            if seq is None or seq.in_flight:
                return "step"
            if not self._take_blocks(seq):
                return "blocks"
            overtaken = self._queue.take(seq)
            if overtaken is not None:
                delays.overtake(overtaken, self._waits, self._clock())
            crowded = self._queue.num_ready > 0
            self._enter(draft, seq)
            self._work(draft, seq, self._chunk(seq, draft.budget, crowded), [])
        return "step" if self._slots.free > 0 else "rows"

    def _take_blocks(self, seq: Sequence) -> bool:
        """Matches, decides and allocates in one: nothing may come between the look-up and the reference."""
        pool = self._pool
        hits = self._hasher.match(seq, pool) if seq.takes_hits else []
        num_new = policy.blocks_for(len(seq.tokens), pool.block_size) - len(hits)
        reserve = self._watermark if self._running else 0
        if not policy.has_room(num_new, pool.num_free_of(hits), pool.free, reserve):
            return False
        pool.acquire(hits)
        fresh = pool.allocate(num_new)
        assert fresh is not None, f"{num_new} blocks were promised, {pool.free} are free"
        seq.blocks = hits + fresh
        seq.computed = len(hits) * pool.block_size
        return True

    def _enter(self, draft: _Draft, seq: Sequence) -> None:
        seq.phase = Phase.RUNNING
        seq.slot = self._slots.take()
        self._running[seq.id] = seq
        if seq.computed >= seq.prompt_len:  # found, with some of what it has generated elsewhere
            self._unpark(seq.id)
        if seq.admitted is None:
            seq.admitted = self._clock()
            delays.admit(seq, self._waits, seq.admitted)
            seq.cached_at_admit = seq.computed
            self._counters.prefix_queries += len(seq.tokens) if seq.takes_hits else 0
            self._counters.prefix_hits += seq.computed
            for follower in self._queue.parked(seq.id):
                follower.deadline = None  # its request has got in: it does not expire by halves
        else:
            self._counters.recomputed_tokens += max(0, seq.lost - seq.computed)
        # Copies: the plan is a message, the sequence goes on.
        draft.admits.append(
            Admit(
                seq.slot, seq.id, seq.params, seq.tokens.copy(), seq.prompt_len, seq.blocks.copy(), start=seq.computed
            )
        )

    # --- its result ---

    def commit(self, plan: StepPlan, result: StepResult) -> list[Event]:
        """The step has run: publishes the blocks it filled, appends its tokens, says what that brought."""
        if len(result.tokens) != plan.num_samples:
            raise ValueError(f"step {plan.step}: {len(result.tokens)} tokens is not one for each sample")
        flight = self._settle(plan)
        draft, now = flight.draft, self._clock()
        seconds = self._rate.add(plan.num_tokens, flight.started, now)
        self._pace.add(seconds, plan.num_tokens, len(plan.works))
        self._charge(flight, now)
        self._counters.steps += 1
        samples = count()  # indices into result.tokens
        events: list[Event] = []
        for work, seq in zip(plan.works, draft.seqs, strict=True):
            if work.slot == seq.slot:  # or else it has left the row, and the row is fenced until now
                self._publish(seq, work.start, work.start + work.count)
            if work.sample:
                index = next(samples)
                if seq.phase is Phase.FINISHED:
                    continue
                if index in result.failed:
                    events.append(self._finish(seq, "grammar"))
                else:
                    events.append(self._append(seq, result, index, now))
        return events

    def fail(self, plan: StepPlan) -> list[Event]:
        """The step raised: its sequences end, and nothing that it wrote is ever read."""
        flight = self._settle(plan)
        self._counters.failed_steps += 1
        return [self._finish(seq, "error") for seq in flight.draft.seqs if seq.phase is not Phase.FINISHED]

    def _charge(self, flight: _Flight, now: float) -> None:
        draft = flight.draft
        seconds = self._shares.add(draft.works, draft.seqs, draft.num_decodes, flight.started, now)
        for seq in draft.starved:
            seq.others_prefill_s += seconds

    def _settle(self, plan: StepPlan) -> _Flight:
        if not self._flights or self._flights[0].plan is not plan:
            raise ValueError(f"step {plan.step} is not the oldest in flight")
        self._pool.settle(plan.step)
        self._slots.settle(plan.step)
        return self._flights.popleft()

    def _publish(self, seq: Sequence, start: int, end: int) -> None:
        size = self._pool.block_size
        first, last = start // size, end // size
        if first < last and seq.cacheable:
            self._hasher.extend(seq, last)
            for i in range(first, last):
                self._pool.publish(seq.blocks[i], seq.hashes[i])
        if start < seq.prompt_len <= end:
            self._unpark(seq.id)

    def _unpark(self, leader_id: int) -> None:
        followers = self._queue.parked(leader_id)
        if followers:
            now = self._clock()
            for seq in followers:
                delays.enlist(seq, self._waits, now)
            self._queue.unpark(leader_id)

    def _append(self, seq: Sequence, result: StepResult, index: int, now: float) -> Event:
        """Where nothing is to be generated, the token is dropped, and the prompt's end is the end."""
        is_first = len(seq.tokens) == seq.prompt_len
        tokens = result.tokens[index : index + 1] if seq.params.max_tokens else []
        logprob = result.logprobs[index] if tokens and result.logprobs else None
        logprobs = None if logprob is None else [logprob]
        seq.tokens += tokens
        seq.in_flight -= 1
        finish = self._reason_to_end(seq, complete=index in result.complete) if tokens else "length"
        if seq.left_at is not None:
            seq.away_s, seq.left_at = now - seq.left_at, None
        if finish is not None:
            self._answers.add(seq.num_generated)
            self._end(seq, finish)
        if not is_first or seq.admitted is None:
            if not seq.away_s:
                return Event(seq.id, tokens, logprobs, finish)
            away_s, seq.away_s = seq.away_s, 0.0
            return Event(seq.id, tokens, logprobs, finish, away_s=away_s)
        told, seq.away_s = delays.until_first_token(seq), 0.0
        queued_s, prefill_s = seq.admitted - seq.arrived, now - seq.admitted
        prompt = result.prompts.get(index)
        return Event(seq.id, tokens, logprobs, finish, True, queued_s, prefill_s, seq.cached_at_admit, prompt, told)

    def _reason_to_end(self, seq: Sequence, complete: bool) -> FinishReason | None:
        """After its newest token."""
        if complete or (seq.tokens[-1] in seq.params.stop_ids and seq.num_generated >= seq.params.min_tokens):
            return "stop"
        return "length" if len(seq.tokens) >= seq.max_len else None

    def _finish(self, seq: Sequence, reason: FinishReason) -> Event:
        self._end(seq, reason)
        return Event(seq.id, [], None, reason)

    # --- leaving ---

    def _end(self, seq: Sequence, reason: FinishReason | None) -> None:
        if seq.phase is Phase.RUNNING:
            self._vacate(seq)
        else:
            self._queue.remove(seq)
        seq.phase, seq.finish = Phase.FINISHED, reason
        del self._live[seq.id]
        self._unpark(seq.id)

    def _preempt(self, seq: Sequence) -> None:
        self._vacate(seq)
        seq.phase = Phase.WAITING
        seq.lost, seq.computed = max(seq.lost, seq.computed), 0
        seq.preemptions += 1
        seq.left_at = self._clock() if seq.left_at is None else seq.left_at
        self._last_victim = seq.id
        self._counters.preemptions += 1
        self._queue.push(seq)
        # Before that, followers go on waiting: one that finds blocks which its leader may not use would overtake it.
        if seq.in_flight or seq.num_generated:
            self._unpark(seq.id)

    def _answer_left(self, seq: Sequence) -> float:
        return self._answers.left(seq.num_generated, seq.max_len - len(seq.tokens))

    def _vacate(self, seq: Sequence) -> None:
        self._queue.settle(seq)
        del self._running[seq.id]
        self._slots.release(seq.slot, self._last_step)
        self._released.append(seq.slot)
        self._pool.release(reversed(seq.blocks), self._last_step)
        seq.slot, seq.blocks = -1, []

    # --- for people ---

    def stats(self) -> EngineStats:
        pool, counters = self._pool, self._counters
        return EngineStats(
            running=len(self._running),
            waiting=len(self._queue),
            waiting_tokens=self._queue.num_tokens,
            blocks_used=pool.usable - pool.free,
            blocks_cached=pool.cached,
            blocks_total=pool.usable,
            steps=counters.steps,
            failed_steps=counters.failed_steps,
            preemptions=counters.preemptions,
            recomputed_tokens=counters.recomputed_tokens,
            prefix_queries=counters.prefix_queries,
            prefix_hits=counters.prefix_hits,
            waits_for=self._waits_for,
            parked=self._queue.num_parked,
            overtaken=self._queue.num_overtaken,
            others_prefill_s=self._shares.of_decodes_s,
        )

    def predicted_s(self, plan: StepPlan) -> float | None:
        """Of a step, as those before it went. None: there were none."""
        return self._pace.seconds(plan.num_tokens - len(plan.works), 1)

    def snapshot(self) -> Snapshot:
        scene = Scene(self._running, self._queue, self._pool, self._slots.free, self._pace, self._answers)
        return scene.snapshot(self.stats(), self._clock())

    def check(self) -> None:
        """Raises RuntimeError on a broken invariant."""
        running, size = self._running.values(), self._pool.block_size
        self._pool.check([seq.blocks for seq in running])
        self._slots.check(seq.slot for seq in running)
        self._queue.check()
        if len(self._live) != len(running) + len(self._queue):
            raise RuntimeError(f"{len(self._live)} live, {len(running)} running, {len(self._queue)} waiting")
        for seq in running:
            planned = len(seq.tokens) + seq.in_flight
            if seq.phase is not Phase.RUNNING or not 0 < seq.computed <= min(planned, len(seq.blocks) * size):
                raise RuntimeError(f"sequence {seq.id}: {seq.computed} of {planned} in {len(seq.blocks)} blocks")
