"""One request's sequences in the engine, from submission to the last token: text, counts, timings, early ends."""

from __future__ import annotations

import asyncio
import logging
from array import array
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field

from gateway.answers.choice import Choice, ChoiceSpec
from gateway.answers.mailbox import Mailbox, SlowReader
from gateway.answers.migration import REMARK, Migration, groups, submission
from gateway.engines.client import Death, EngineUnavailable
from gateway.errors import ApiError
from gateway.http import faults
from gateway.http.exchange import Exchange
from gateway.http.keys import tenant_of
from gateway.openai import Usage
from gateway.requests.convert import Job, usage
from gateway.services import Services
from gateway.timeline.engine_time import Visit, cut
from gateway.timeline.laps import FIRST_TOKEN, Cause
from scheduler.protocol import EngineStats, Output, Submit, WaitReason
from scheduler.types import Rejected

_log = logging.getLogger("headrace.generation")
MAX_PAUSED = 4096  # requests of a gateway that may be open while no engine takes work for a moment


@dataclass(slots=True)
class Run:
    """A sequence that has not ended."""

    choice: Choice
    prompt: int  # which of the job's
    leads: bool  # first of its prompt's choices: the prompt is counted with it
    first_at: float | None = None
    last_at: float = 0.0
    visit: Visit = field(default_factory=Visit)
    accepted: array[int] = field(default_factory=lambda: array("I"))  # all tokens that engines have sent

    @property
    def index(self) -> int:
        return self.choice.index


class Generation:
    """A Sink. Whoever creates one calls close() in the end, whatever happened: nothing then runs on in the engine."""

    def __init__(self, services: Services, job: Job, exchange: Exchange, max_unread_bytes: int | None) -> None:
        self.mailbox = Mailbox(max_unread_bytes)
        self.ended = asyncio.Event()  # every choice has finished, or the request has failed
        self._services = services
        self._job = job
        self.generates = any(params.max_tokens for params in job.params)  # or else only prompts are read
        self._exchange = exchange
        self._seq_ids = services.engine.new_ids(len(job.seeds))
        self._runs = {seq_id: self._new_run(index) for index, seq_id in enumerate(self._seq_ids)}
        self.choices = [run.choice for run in self._runs.values()]
        self._last_run = next(iter(self._runs.values()))  # of those that have ended; at first, any
        self._submitted_at = 0.0  # when the first of them was
        self._waits_for: WaitReason = "step"
        self._live: set[int] = set()  # in the engine, as far as is known here
        self._failed = False
        self._unfinished = "abort"  # what is counted of choices that come to no end of their own
        self._outputs_seen = 0
        self._migration = Migration(services, exchange, self)
        self._stall_timer: asyncio.TimerHandle | None = None
        self._feeder: asyncio.Task[None] | None = None  # submits the prompts that did not fit at once
        self._freed = asyncio.Event()  # a sequence has ended since the feeder last looked
        exchange.prompt_tokens = sum(map(len, job.prompts))
        services.live.enter(self._seq_ids, exchange)

    def _new_run(self, index: int) -> Run:
        prompt, place = divmod(index, self._job.n)
        params = self._job.params[prompt]
        spec = ChoiceSpec(
            self._services.model.tokenizer,
            self._job.text,
            frozenset(self._services.model.eos_ids),
            frozenset(params.stop_ids),
            params.min_tokens,
            params.logprobs is not None,
        )
        return Run(Choice(index, spec), prompt, leads=place == 0)

    def usage(self) -> Usage:
        """So far."""
        exchange = self._exchange
        reasoning = sum(choice.num_reasoning for choice in self.choices)
        return usage(exchange.prompt_tokens, exchange.generated_tokens, exchange.cached_tokens, reasoning)

    # submission

    async def start(self) -> None:
        """Returns when the engine has accepted every sequence, or as many as it may be given at a time; the others
        follow as those end. Raises ApiError, and then none of them runs."""
        self._watch_stall()
        self._submitted_at = self._services.clock()
        self._exchange.laps.enter_engine(self._causes)
        num_first = self._num_first()
        try:
            await self._accepted(range(num_first))
        except ApiError:
            self._migration.cancel()
            self._abort(set(self._live), "failed")
            self._runs.clear()  # a request that was refused had no choices
            self._exchange.prompt_tokens = 0  # and nothing of it was read
            raise
        if num_first < len(self._job.prompts) and not self._failed:
            self._feeder = asyncio.create_task(self._feed(num_first))

    def _num_first(self) -> int:
        """Of the prompts, how many fit at once; one always does."""
        settings, num_tokens = self._services.settings, 0
        for prompt, ids in enumerate(self._job.prompts):
            num_tokens += len(ids) * self._job.n
            is_over = num_tokens > settings.max_queued_tokens or (prompt + 1) * self._job.n > settings.max_queued
            if is_over and prompt > 0:
                return prompt
        return len(self._job.prompts)

    async def _feed(self, first: int) -> None:
        try:
            for prompt in range(first, len(self._job.prompts)):
                await self._follow_up(prompt)
        except ApiError as error:
            self.stop("failed", error)

    async def _follow_up(self, prompt: int) -> None:
        """Where others have filled the queue meanwhile, as long as something of this request still runs: once more.
        And where the engine has died meanwhile."""
        migrates = self._services.settings.migration
        while True:
            if migrates:
                await self._migration.over()
            await self._room_for(prompt)
            try:
                return await self._accepted([prompt])
            except ApiError as error:
                if error.code == "engine_unavailable" and migrates:
                    continue
                if error.code != "queue_full" or not self._live:
                    raise
            self._freed.clear()
            await self._freed.wait()

    async def _room_for(self, prompt: int) -> None:
        job, settings = self._job, self._services.settings
        while self._live:
            num_tokens = sum(len(job.prompts[run.prompt]) for id, run in self._runs.items() if id in self._live)
            fits = num_tokens + len(job.prompts[prompt]) * job.n <= settings.max_queued_tokens
            if fits and len(self._live) + job.n <= settings.max_queued:
                return
            self._freed.clear()
            await self._freed.wait()

    async def _accepted(self, prompts: Sequence[int]) -> None:
        services = self._services
        try:
            async with asyncio.timeout(services.settings.submit_timeout_s):
                await self._submit_all(prompts)
        except TimeoutError:
            message = "The engine did not accept the request in time."
            raise faults.engine_unavailable(services, message) from None
        except Rejected as refusal:
            services.metrics.rejected(refusal.code)
            raise faults.rejected(services, refusal) from None
        except EngineUnavailable as error:
            services.metrics.rejected("engine_unavailable")
            raise faults.engine_unavailable(services, error.message, error.retry_after_s) from None

    async def _submit_all(self, prompts: Sequence[int]) -> None:
        if len(prompts) == 1:
            return await self._submit(prompts[0])
        try:
            async with asyncio.TaskGroup() as group:
                for prompt in prompts:
                    group.create_task(self._submit(prompt))
        except BaseExceptionGroup as refusals:
            raise refusals.exceptions[0] from None

    async def _submit(self, prompt: int) -> None:
        ids, now = self._seq_ids[prompt * self._job.n : (prompt + 1) * self._job.n], self._services.clock()
        for seq_id in ids:
            self._runs[seq_id].visit.submitted_at = now
        try:
            await self.submit(self._submission(ids))
        except EngineUnavailable as error:
            services = self._services
            if not services.engine.is_paused or services.live.num_requests > MAX_PAUSED:
                raise
            self._migration.begin(Death.by_plan(error.message), set(ids))  # to the next engine, with the others

    def _submission(self, seq_ids: Sequence[int]) -> Submit:
        parts = {id: self._runs[id] for id in seq_ids}
        return submission(self._job, parts, self._services.settings.max_wait_s, tenant_of(self._exchange.key))

    async def submit(self, request: Submit) -> None:
        self._live.update(request.seq_ids)
        try:
            await self._services.engine.submit(request, self)
            self._job.place.replica = self._services.engine.replica_of(request.seq_ids[0])
        except (Rejected, EngineUnavailable):
            self._live.difference_update(request.seq_ids)
            raise

    # outputs

    def deliver(self, output: Output) -> None:
        run = self._runs.get(output.seq_id)
        if run is None or self._failed:
            return
        self._outputs_seen += 1
        try:
            run.accepted.extend(output.tokens)
            if output.seq_id in self._migration.unheard:
                self._migration.heard(output.seq_id)
            self._take(run, output)
        except SlowReader:
            limit = self._services.settings.slow_reader_bytes
            self.stop("slow_reader", faults.slow_reader(limit))
        except Exception:
            # A Sink must not raise: the engine's connection serves others too.
            _log.exception("request %s: an output could not be used", self._exchange.request_id)
            self.stop("failed", faults.internal(self._exchange.request_id))

    def _take(self, run: Run, output: Output) -> None:
        if output.finish is not None:
            self._live.discard(output.seq_id)
        if output.finish == "error":
            return self.stop("failed", faults.generation_failed())
        if output.finish == "grammar":
            return self.stop("failed", faults.grammar_failed())
        if output.finish == "expired":
            return self.stop("failed", faults.expired(self._services.settings.max_wait_s))
        choice = run.choice
        if choice.is_plain and output.finish is None and output.first is None and choice.finish is None:
            text = choice.push_plain(output.tokens)
            self._count(run, output, len(output.tokens))
            if text:
                self.mailbox.put_text(choice.index, text)
            return None
        used_before = choice.num_tokens
        delta = choice.push(output)
        if output.first is not None:
            delta.prompt = output.first.prompt
        self._count(run, output, choice.num_tokens - used_before)
        if choice.finish is not None:
            self._finish(run, output.seq_id)
        if delta:
            self.mailbox.put(delta)
        return None

    def _count(self, run: Run, output: Output, num_used: int) -> None:
        services, exchange = self._services, self._exchange
        if output.first is not None:
            run.visit.heard(output.first, services.clock(), self._others_prefill_s(run))
        if output.away_s is not None:
            run.visit.away_s += output.away_s
        if output.first is not None and run.leads:
            exchange.cached_tokens += output.first.cached_tokens
            prompt_len = len(self._job.prompts[run.prompt])
            services.metrics.prompt_computed(prompt_len, output.first, exchange.request_id)
        if not num_used:
            return
        exchange.generated_tokens += num_used
        services.metrics.tokens(num_used)
        now = services.clock()
        if run.first_at is None:
            run.first_at = now
        else:
            services.metrics.inter_token((now - run.last_at) / num_used)
        run.last_at = now
        if exchange.ttft_s is None:
            exchange.ttft_s = now - exchange.started
            exchange.laps.note(FIRST_TOKEN)
            services.metrics.first_token(exchange.ttft_s, exchange.request_id)

    def _finish(self, run: Run, seq_id: int) -> None:
        del self._runs[seq_id]
        self._note_waits(run)
        self._last_run = run
        self._abort({seq_id} & self._live, "stop_string")
        self._freed.set()
        metrics, finish = self._services.metrics, run.choice.finish
        if self.generates:
            metrics.choice_finished(finish or "error")
        if run.first_at is not None:
            metrics.choice_generated(run.choice.num_tokens, run.last_at - run.first_at, self._exchange.request_id)
        if not self._runs:
            if self.generates:
                metrics.request_generated(max(choice.num_tokens for choice in self.choices))
            self._exchange.laps.enter("slow_reader")
            self.ended.set()

    # its engine died

    def fail(self, death: Death, seq_ids: Set[int]) -> None:
        """There is nothing left in it to abort. What was not submitted yet is so later."""
        lost = self._live & seq_ids & self._runs.keys()
        self._live -= seq_ids
        if not self._services.settings.migration:
            self.stop("failed", faults.engine_unavailable(self._services, death.message))
        elif lost and not self._failed:
            self._migration.begin(death, lost)

    def again(self, seq_ids: Iterable[int]) -> list[Submit]:
        left = {seq_id: self._runs[seq_id] for seq_id in seq_ids if seq_id in self._runs}
        return [self._submission(ids) for ids in groups(self._job, left)]

    def resumed(self, away_s: float) -> None:
        """Its time in engines goes on as if there had been no such time."""
        self._submitted_at += away_s
        ended = () if self._last_run.choice.finish is None else (self._last_run,)
        for run in (*self._runs.values(), *ended):
            run.visit.postpone(away_s, self._others_prefill_s(run))
        self._exchange.laps.enter("engine")
        self.mailbox.remark = REMARK

    # early ends

    def stop(self, cause: str, error: ApiError) -> None:
        """Ends every sequence that still runs. Readers get what came before, then the error."""
        if not self._runs or self._failed:
            return
        self._failed = True
        self._unfinished = "error" if cause in ("failed", "stalled") else "abort"
        self._stop_feeding()
        self._migration.cancel()
        self._note_waits(self._going_on())
        self._abort(set(self._live), cause)
        self._exchange.laps.enter("slow_reader")
        self.mailbox.fail(error)
        self.ended.set()

    def close(self) -> None:
        """Nobody reads any more. What still runs then was left by its client."""
        if self._stall_timer is not None:
            self._stall_timer.cancel()
        self._stop_feeding()
        self._migration.cancel()
        self._note_waits(self._going_on())
        self._abort(set(self._live), "client_closed")
        if self.generates:
            for _ in self._runs:
                self._services.metrics.choice_finished(self._unfinished)
        self._runs.clear()
        self._services.live.leave(self._seq_ids, self._services.clock())

    # where its time goes

    def _causes(self, seconds: float) -> dict[Cause, float]:
        """Of the choice that ended last; of one that has not ended, while there are some."""
        run = self._going_on()
        self._note_waits(run)
        return cut((run or self._last_run).visit, self._submitted_at, seconds, self._waits_for)

    def _going_on(self) -> Run | None:
        """The first that has not ended."""
        return next(iter(self._runs.values()), None)

    def _note_waits(self, run: Run | None) -> None:
        """What an engine tells of a choice it tells only while it has that."""
        if run is not None and (stats := self._stats_of(run)) is not None:
            run.visit.others_after_s = stats.others_prefill_s
            self._waits_for = stats.waits_for

    def _stats_of(self, run: Run) -> EngineStats | None:
        return self._services.engine.stats_of(self._seq_ids[run.index])

    def _others_prefill_s(self, run: Run) -> float:
        stats = self._stats_of(run)
        return 0.0 if stats is None else stats.others_prefill_s

    def _stop_feeding(self) -> None:
        if self._feeder is not None:
            self._feeder.cancel()

    def _abort(self, seq_ids: set[int], cause: str) -> None:
        if seq_ids:
            self._live -= seq_ids
            self._services.engine.abort(sorted(seq_ids))
            self._services.metrics.aborted(cause, len(seq_ids))

    def _watch_stall(self) -> None:
        """One timer a request, not one a token: it only asks whether anything came since it last rang."""
        self._stall_timer = asyncio.get_running_loop().call_later(
            self._services.settings.stall_timeout_s, self._check_stall, self._outputs_seen
        )

    def _check_stall(self, seen_before: int) -> None:
        if self._outputs_seen > seen_before or self._migration.is_under_way:
            self._watch_stall()
        else:
            self.stop("stalled", faults.stalled(self._services.settings.stall_timeout_s))

    # reading it whole

    async def finished(self) -> None:
        """Waits for every choice to end. Raises the error that ended the request instead."""
        await self.ended.wait()
        if self._failed:
            await self.mailbox.discard_until_error()
