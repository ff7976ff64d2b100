"""The step loop: take what arrived, plan and launch, finish the oldest step, drop what was cancelled meanwhile, commit,
send. While one step runs the next may be launched, so that the device need not wait for the host."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import msgspec

from engine.compiling import CompileQueue, Pending
from engine.flights import Executor, Flights
from engine.heart import Heart
from engine.profile import Profiles
from engine.server import CONNECTION_SHIFT, SEQ_MASK, Gone, Server, internal_id
from engine.watchers import Watchers
from scheduler.plan import Event, StepPlan
from scheduler.protocol import (
    MAX_FRAME_BYTES,
    Abort,
    Accepted,
    DropProfile,
    EngineStats,
    FirstToken,
    Output,
    Outputs,
    Profile,
    Rejection,
    Snapshot,
    StepRecord,
    Submit,
    ToEngine,
    Vocabulary,
    Watch,
)
from scheduler.scheduler import Scheduler
from scheduler.types import Rejected, Sequence

log = logging.getLogger("headrace.engine")

IDLE_S = 1.0  # a sign of life is sent this often where nothing happens
MAX_FAILED_STEPS = 3  # in a row: then the engine gives up and is started anew
LOGPROB_BYTES = 14  # of a token id with its log-probability in a frame


class StepsFail(RuntimeError):
    """Step after step raised; the process is of no more use."""


class Loop:
    def __init__(
        self,
        scheduler: Scheduler,
        runner: Executor,
        server: Server,
        vocab_size: int,
        grammars: CompileQueue,
        clock: Callable[[], float] = time.monotonic,
        profiles: Profiles | None = None,
        heart: Heart | None = None,
    ) -> None:
        self._scheduler = scheduler
        self._runner = runner
        self._server = server
        self._vocab_size = vocab_size
        self._grammars = grammars
        self._clock = clock
        self._profiles = profiles or Profiles(None, server.send, clock)
        self._heart = heart or Heart(clock)
        self._owned: dict[int, set[int]] = defaultdict(set)  # connection -> internal ids of its live sequences
        self._flights = Flights(runner, clock)
        self._watchers = Watchers(server, clock)
        self._failed_in_a_row = 0
        self._last_sent = clock()
        self.stopping = False

    def run(self) -> None:
        """Until `stopping`. Raises StepsFail when the device or the model has broken."""
        try:
            while not self.stopping:
                if not self.turn():
                    self._idle()
        finally:
            self._profiles.close()
            self._grammars.close()

    def stop(self) -> None:
        """From another thread or a signal handler."""
        self.stopping = True
        self._server.wake()

    def turn(self) -> bool:
        """Brings one step to its end, if there is work. False: nothing to do before something arrives, or is read."""
        self._heart.beat()
        for connection, message in self._server.take():
            self._handle(connection, message)
        for pending in self._grammars.take():
            self._leave_queue(pending)
        self._send(self._scheduler.expired(), None)
        return self._profiles.around(self._step)

    def _step(self) -> bool:
        self._launch()
        self._watchers.show(self._snapshot)  # while the device computes
        if not self._flights:
            return False
        self._land()
        return True

    def _launch(self) -> None:
        """As many steps as may be in flight, and not one where gateways have much to read: prompts that were read are
        large, and what is in memory of them stays bounded."""
        while self._flights.has_room and not self._server.congested:
            plan = self._scheduler.plan()
            if plan is None:
                return
            self._flights.launch(plan)

    def _land(self) -> None:
        self._heart.beat(self._scheduler.predicted_s(self._flights.oldest))
        landed = self._flights.land()
        if landed.result is None:
            self._count_failure()
            events = self._scheduler.fail(landed.plan)
        else:
            self._failed_in_a_row = 0
            for connection, message in self._server.take_aborts():
                self._cancel(connection, message)
            events = self._scheduler.commit(landed.plan, landed.result)
        self._send(events, _record(landed.plan, landed.seconds))

    def _count_failure(self) -> None:
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= MAX_FAILED_STEPS:
            raise StepsFail(f"{MAX_FAILED_STEPS} steps in a row failed")

    def _idle(self) -> None:
        self._scheduler.check()
        if self._clock() - self._last_sent >= IDLE_S:
            self._tell_all()
        self._server.wait(self._watchers.patience_s(IDLE_S))

    # --- messages in ---

    def _handle(self, connection: int, message: ToEngine | Gone) -> None:
        if isinstance(message, Submit):
            self._submit(connection, message)
        elif isinstance(message, Vocabulary):
            self._grammars.learn(message)
        elif isinstance(message, Profile):
            self._profiles.begin(connection, message)
        elif isinstance(message, DropProfile):
            self._profiles.drop(connection, message)
        elif isinstance(message, Watch):
            self._watchers.add(connection, message.for_s)
        else:
            self._cancel(connection, message)

    def _submit(self, connection: int, message: Submit) -> None:
        """One with a grammar is answered once that is compiled."""
        try:
            self._check_ids(message)
            _check_size(message)
            seqs = self._sequences(connection, message)
            if message.params.grammar is not None:
                self._grammars.add(connection, message.params.grammar, seqs)
            else:
                self._scheduler.submit(seqs)
                self._server.send(connection, Accepted(message.seq_ids))
            self._owned[connection].update(seq.id for seq in seqs)
        except (Rejected, ValueError) as no:
            self._server.send(connection, _rejection(message.seq_ids, no))

    def _leave_queue(self, pending: Pending) -> None:
        """Of those whose grammar is compiled, or will not be."""
        connection, seqs = pending.connection, pending.seqs
        seq_ids = [seq.id & SEQ_MASK for seq in seqs]
        try:
            matcher = pending.result()
            self._scheduler.submit(seqs)
        except (Rejected, ValueError) as no:
            self._owned[connection].difference_update(seq.id for seq in seqs)
            self._server.send(connection, _rejection(seq_ids, no))
            return
        for seq in seqs:
            self._runner.matchers.assign(seq.id, matcher)
        self._server.send(connection, Accepted(seq_ids))
        self._forget(pending.cancelled)

    def _check_ids(self, message: Submit) -> None:
        """An id outside the vocabulary would make the whole step fail, its neighbours included."""
        params = message.params
        ids = [*message.prompt, *(token for token, _ in params.logit_bias), *params.stop_ids, *params.allowed_ids]
        ids += [token for word in params.bad_words for token in word]
        ids += [token for tokens in message.generated for token in tokens]
        if len(message.seeds) != len(message.seq_ids) or not message.seq_ids:
            raise ValueError("a submission needs one seed for each sequence")
        if message.generated and len(message.generated) != len(message.seq_ids):
            raise ValueError("a submission says of all sequences what they have generated, or of none")
        if ids and not 0 <= min(ids) <= max(ids) < self._vocab_size:
            raise ValueError(f"token ids must be in 0 .. {self._vocab_size - 1}")

    def _sequences(self, connection: int, message: Submit) -> list[Sequence]:
        now = self._clock()
        leader = internal_id(connection, message.seq_ids[0])
        generated: list[list[int]] = message.generated or [[]] * len(message.seq_ids)
        return [
            Sequence(
                id=internal_id(connection, seq_id),
                params=msgspec.structs.replace(message.params, seed=seed),
                tokens=message.prompt + more,
                prompt_len=len(message.prompt),
                arrived=now,
                priority=message.priority,
                deadline=None if message.max_wait_s is None else now + message.max_wait_s,
                salt=message.salt,
                tenant=message.tenant,
                leader=leader if index else None,
            )
            for index, (seq_id, seed, more) in enumerate(zip(message.seq_ids, message.seeds, generated, strict=True))
        ]

    def _cancel(self, connection: int, message: Abort | Gone) -> None:
        if isinstance(message, Gone):
            gone: Iterable[int] = self._owned.pop(connection, set())
            self._profiles.drop(connection)
            self._watchers.remove(connection)
        else:
            gone = [internal_id(connection, seq_id) for seq_id in message.seq_ids]
            self._owned[connection].difference_update(gone)
        self._grammars.cancel(gone)
        self._forget(gone)

    def _forget(self, seq_ids: Iterable[int]) -> None:
        for seq_id in seq_ids:
            self._scheduler.abort(seq_id)
            self._runner.matchers.forget(seq_id)

    # --- messages out ---

    def _send(self, events: list[Event], step: StepRecord | None) -> None:
        """One frame to each gateway that has news, and the step's record to the first only, or it would count twice."""
        if step is None and not events:
            return
        outputs: dict[int, list[Output]] = {connection: [] for connection in self._server.connections}
        for event in events:
            connection = event.seq_id >> CONNECTION_SHIFT
            if event.finish is not None:
                self._owned[connection].discard(event.seq_id)
                self._runner.matchers.forget(event.seq_id)
            if connection in outputs:
                outputs[connection].append(_output(event))
        self._last_sent = self._clock()
        stats = self._stats()
        for index, (connection, batch) in enumerate(outputs.items()):
            record = step if index == 0 else None
            for frame in _frames(batch, record, stats):
                self._server.send(connection, frame)

    def _stats(self) -> EngineStats:
        stats, compiling = self._scheduler.stats(), self._grammars.num_waiting
        return msgspec.structs.replace(stats, compiling=compiling) if compiling else stats

    def _snapshot(self) -> Snapshot:
        return msgspec.structs.replace(self._scheduler.snapshot(), stats=self._stats())

    def _tell_all(self) -> None:
        self._last_sent = self._clock()
        stats = self._stats()
        for connection in self._server.connections:
            self._server.send(connection, Outputs([], [], stats))


def _rejection(seq_ids: list[int], no: Rejected | ValueError) -> Rejection:
    if isinstance(no, Rejected):
        return Rejection(seq_ids, no.code, no.message, no.retry_after_s)
    return Rejection(seq_ids, "invalid", str(no), None)


def _output(event: Event) -> Output:
    first = None
    if event.delays is not None:
        first = FirstToken(event.queued_s, event.prefill_s, event.cached_tokens, event.prompt, event.delays)
    return Output(event.seq_id & SEQ_MASK, event.tokens, event.finish, event.logprobs, first, event.away_s)


def _check_size(message: Submit) -> None:
    """Refuses what could not be answered in one frame: the connection would be lost, and all that runs on it."""
    wanted = message.params.prompt_logprobs
    if wanted is None:
        return
    length = len(message.prompt)
    if length * (wanted + 2) * LOGPROB_BYTES > MAX_FRAME_BYTES:  # 2: the token's own, and the lengths of lists
        raise Rejected(
            "too_long", f"{wanted} log-probabilities for each of {length} tokens are too many; ask for fewer"
        )


def _frames(outputs: list[Output], record: StepRecord | None, stats: EngineStats) -> Iterator[Outputs]:
    """Prompts that were read go alone: together they could be more than a frame may hold."""
    rest: list[Output] = []
    for output in outputs:
        if output.first is not None and output.first.prompt is not None:
            yield Outputs([output], [], stats)
        else:
            rest.append(output)
    if rest or record is not None:
        yield Outputs(rest, [] if record is None else [record], stats)


def _record(plan: StepPlan, seconds: float) -> StepRecord:
    """Prompt tokens are those of works that compute more than one, or that do not sample."""
    chunks = sum([work.count > 1 or not work.sample for work in plan.works])
    kind: Literal["prefill", "decode", "mixed"] = "mixed"
    if chunks == 0:
        kind = "decode"
    elif chunks == len(plan.works):
        kind = "prefill"
    return StepRecord(kind, len(plan.works), plan.num_tokens, seconds)
