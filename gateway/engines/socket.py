"""The client of an engine over its socket: one object that outlives connections, and so the engines behind them.

`submit` and `abort` are for requests; `converse` is for the supervisor, which hands over each new connection.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import msgspec

from gateway.engines.client import Death, EngineUnavailable, Sink
from scheduler.protocol import (
    Abort,
    Accepted,
    DropProfile,
    EngineStats,
    Fatal,
    FrameError,
    FrameSplitter,
    FromEngine,
    Outputs,
    Profile,
    Profiled,
    Progress,
    Pulse,
    Ready,
    Rejection,
    Snapshot,
    StepRecord,
    Submit,
    Vocabulary,
    Watch,
    encode_frame,
    from_engine_decoder,
)
from scheduler.types import Rejected

READ_BYTES = 1 << 16
LOOK_S = 0.05  # between two looks at whether it is empty


class EngineFailed(Exception):
    """An engine came to its end. model, memory, internal: as it said itself; lost: it said nothing; hung: it lives, and
    does not go on."""

    def __init__(self, kind: Literal["model", "memory", "internal", "lost", "hung"], message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


class EngineObserver(Protocol):
    """Told of what engines do. Called on the event loop; must not block or raise."""

    def on_step(self, step: StepRecord) -> None: ...
    def on_stats(self, stats: EngineStats) -> None: ...
    def engine_up(self, up: bool) -> None: ...
    def engine_draining(self, draining: bool) -> None: ...
    def engine_restarted(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Listener:
    """What a start of an engine is shown to."""

    on_progress: Callable[[Progress], None]
    on_ready: Callable[[Ready], None]


@dataclass(frozen=True, slots=True)
class Patience:
    """With an engine that has work, of whichever gateway. Its pulse comes once a second also while it computes, so a
    long step is no silence; a step itself is given the multiple of what those before it make one expect."""

    silence_s: float = 6.0  # a period without a word; the second in a row, with the same work open, is the end
    least_s: float = 60.0  # for what the step loop is at
    unpredicted_s: float = 180.0  # where nobody can tell how long it should take
    multiple: float = 10.0

    def for_step_s(self, predicted_s: float | None) -> float:
        return self.unpredicted_s if predicted_s is None else max(self.least_s, self.multiple * predicted_s)


@dataclass(frozen=True, slots=True)
class _Question:
    """A Submit that the engine has not answered yet."""

    seq_ids: list[int]
    answer: asyncio.Future[None]


class SocketEngine:
    """An EngineClient. Invariant: an id is in `_sinks` from its submission until it finished or was aborted."""

    def __init__(
        self, observer: EngineObserver, *, answer_timeout_s: float = 60.0, patience: Patience = Patience()
    ) -> None:
        self.retry_after_s = 1.0  # kept by the supervisor, who knows when the next engine may be there
        self._observer = observer
        self._answer_timeout_s = answer_timeout_s
        self._patience = patience
        self._up = asyncio.Event()  # it takes work
        self._shut: Literal["no", "pause", "yes"] = "no"  # pause: for a moment
        self.death: Death | None = None  # the last; the supervisor, who sees how the process ended, explains it
        self._from_outside: bool | None = None  # explains a death that is not seen yet
        self._next_id = 1
        self._ready: Ready | None = None
        self._last_ready: Ready | None = None  # of the engine that runs or ran last
        self._vocabulary = b""  # the frame that tells it to each engine
        self._stats: EngineStats | None = None
        self.stats_at = 0.0  # by time.monotonic
        self._writer: asyncio.StreamWriter | None = None
        self._sinks: dict[int, Sink] = {}
        self._unread: dict[int, int] = {}  # prompt tokens, by the first sequence, until that is heard of
        self.unread_tokens = 0  # their sum
        self._questions: dict[int, _Question] = {}  # by their first id
        self._profiles: dict[int, asyncio.Future[Profiled]] = {}  # that are waited for
        self._told: Callable[[Snapshot], None] | None = None

    @property
    def ready(self) -> Ready | None:
        if self.takes_work:
            return self._ready
        return self._last_ready if self.is_paused else None

    @property
    def said(self) -> Ready | None:
        return self._ready

    @property
    def takes_work(self) -> bool:
        return self._up.is_set()

    @property
    def is_draining(self) -> bool:
        return self._shut != "no"

    @property
    def is_paused(self) -> bool:
        return self._shut == "pause"

    @property
    def stats(self) -> EngineStats | None:
        return self._stats

    @property
    def replicas(self) -> Sequence[SocketEngine]:
        return (self,)

    def replica_of(self, seq_id: int) -> int:
        return 0

    def stats_of(self, seq_id: int) -> EngineStats | None:
        return self._stats

    def has(self, seq_id: int) -> bool:
        return seq_id in self._sinks

    @property
    def num_open(self) -> int:
        return len(self._sinks)

    def teach(self, vocabulary: Vocabulary) -> None:
        """Told to the engine, and to each that follows it. Until then, requests with a grammar are refused."""
        self._vocabulary = encode_frame(vocabulary)
        self._spell()

    def _spell(self) -> None:
        if self._vocabulary and self._ready is not None and self._writer is not None:
            self._writer.write(self._vocabulary)

    def new_ids(self, count: int) -> list[int]:
        first, self._next_id = self._next_id, self._next_id + count
        return list(range(first, self._next_id))

    async def available(self) -> None:
        await self._up.wait()

    def shut(self, pause: bool) -> None:
        """From now on it takes no work; what it has goes on. pause: it will be open again in a moment. Stays so over
        ends and starts of the engine."""
        self._shut = "pause" if pause else "yes"
        self._up.clear()
        self._observer.engine_draining(True)

    def open(self) -> None:
        self._shut = "no"
        if self._ready is not None:
            self._up.set()
        self._observer.engine_draining(False)

    async def found(self, within_s: float) -> bool:
        """Whether it takes work in that time."""
        try:
            async with asyncio.timeout(within_s):
                await self._up.wait()
        except TimeoutError:
            return False
        return True

    async def emptied(self, within_s: float) -> bool:
        """Whether all that it has comes to its end in that time."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + within_s
        while self._sinks and clock() < deadline:
            await asyncio.sleep(LOOK_S)  # not an event, which every end of a sequence would have to set
        return not self._sinks

    def move(self, message: str) -> int:
        """All that it has goes on elsewhere: the engine forgets it, and sinks are told. What it has not accepted yet
        counts as accepted. Returns how many requests there were. Only where it is shut."""
        lost = self._by_sink()
        self.abort(list(self._sinks))
        death = Death.by_plan(message)
        for sink, seq_ids in lost:
            sink.fail(death, seq_ids)
        return len(lost)

    def _by_sink(self) -> list[tuple[Sink, set[int]]]:
        """One a request, whatever its choices."""
        found: dict[int, tuple[Sink, set[int]]] = {}
        for seq_id, sink in self._sinks.items():
            found.setdefault(id(sink), (sink, set()))[1].add(seq_id)
        return list(found.values())

    async def submit(self, request: Submit, sink: Sink, cached_tokens: int = 0) -> None:
        """cached_tokens: of the prompt, that the engine need not read, as far as anybody knows."""
        writer = self._writer
        if not self.takes_work or writer is None:
            raise EngineUnavailable("The engine is not running.", self.retry_after_s)
        key = request.seq_ids[0]
        question = _Question(request.seq_ids, asyncio.get_running_loop().create_future())
        self._questions[key] = question
        self._sinks.update(dict.fromkeys(request.seq_ids, sink))
        self._note_read(key)  # or what it counted before, if it did, would stay in the sum
        self._unread[key] = unread = len(request.prompt) - cached_tokens
        self.unread_tokens += unread
        writer.write(encode_frame(request))
        # A timer, not asyncio.timeout, which takes ten times as long and is in every request's way.
        late = asyncio.get_running_loop().call_later(self._answer_timeout_s, self._wait_no_longer, question.answer)
        try:
            await question.answer
        except BaseException:  # also where it was accepted, and then whoever waits was cancelled in the same turn
            self.abort(request.seq_ids)
            raise
        finally:
            late.cancel()
            del self._questions[key]

    def _wait_no_longer(self, answer: asyncio.Future[None]) -> None:
        if not answer.done():
            answer.set_exception(EngineUnavailable("The engine does not answer.", self.retry_after_s))

    def abort(self, seq_ids: list[int]) -> None:
        known = [seq_id for seq_id in seq_ids if self._forget(seq_id)]
        if known and self._writer is not None:
            self._writer.write(encode_frame(Abort(known)))
        for seq_id in known:
            question = self._questions.get(seq_id)
            if question and not question.answer.done() and self._sinks.keys().isdisjoint(question.seq_ids):
                question.answer.set_result(None)

    def _forget(self, seq_id: int) -> bool:
        """Whether it was known."""
        self._note_read(seq_id)
        return self._sinks.pop(seq_id, None) is not None

    def _note_read(self, seq_id: int) -> None:
        self.unread_tokens -= self._unread.pop(seq_id, 0)

    async def profile(self, request: Profile, limit_s: float) -> Profiled:
        """A ProfilingEngine's."""
        writer = self._writer
        if self._ready is None or writer is None:
            raise EngineUnavailable("The engine is not running.", self.retry_after_s)
        answer: asyncio.Future[Profiled] = asyncio.get_running_loop().create_future()
        self._profiles[request.profile_id] = answer
        writer.write(encode_frame(request))
        try:
            async with asyncio.timeout(limit_s):
                return await answer
        finally:
            del self._profiles[request.profile_id]
            if not answer.done() or answer.cancelled():
                writer.write(encode_frame(DropProfile(request.profile_id)))

    def watch(self, for_s: float, told: Callable[[Snapshot], None]) -> None:
        self._told = told
        if self._ready is not None and self._writer is not None:
            self._writer.write(encode_frame(Watch(for_s)))

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, listener: Listener) -> None:
        """Speaks with one engine until its end; always raises, EngineFailed if it was not cancelled."""
        self._writer = writer
        try:
            async for message in self._messages(reader):
                self._handle(message, listener)
            raise EngineFailed("lost", "the engine closed its connection")
        except (FrameError, msgspec.MsgspecError) as error:
            raise EngineFailed("internal", f"the engine does not speak the protocol: {error}") from error
        except OSError as error:
            raise EngineFailed("lost", f"the connection to the engine broke: {error}") from error
        finally:
            self._lose("The engine stopped before the answer was complete.")
            writer.transport.abort()  # not close(): an engine that no longer reads must not hold us

    def explain(self, from_outside: bool) -> None:
        """Its end, as its supervisor in another process saw it, perhaps before the connection tells us."""
        if self.death is not None and not self.death.explained.is_set():
            _explain(self.death, from_outside)
        elif self._writer is not None:
            self._from_outside = from_outside

    async def _messages(self, reader: asyncio.StreamReader) -> AsyncIterator[FromEngine]:
        splitter = FrameSplitter()
        open_before: frozenset[int] = frozenset()  # when a period of silence ended
        was_counted = False  # then, work of whichever gateway
        while True:
            try:
                async with asyncio.timeout(self._patience.silence_s):
                    data = await reader.read(READ_BYTES)
            except TimeoutError:
                self._check_silence(open_before, was_counted)
                open_before, was_counted = frozenset(self._sinks), self._num_counted > 0
                continue
            if not data:
                return
            open_before, was_counted = frozenset(), False
            for body in splitter.feed(data):
                yield from_engine_decoder.decode(body)

    @property
    def _num_counted(self) -> int:
        """Sequences of all gateways that it had when it last counted."""
        stats = self._stats
        return 0 if stats is None else stats.running + stats.waiting + stats.compiling

    def _check_silence(self, open_before: frozenset[int], was_counted: bool) -> None:
        """A whole period passed without a frame. These were open before it began; was_counted: others may have been."""
        if was_counted or not open_before.isdisjoint(self._sinks):
            raise EngineFailed("hung", f"the engine has work and said nothing for {2 * self._patience.silence_s:g} s")

    def _check_progress(self, pulse: Pulse) -> None:
        """An engine says how long something should take only of a step, so then it has work, whoever's."""
        limit_s = self._patience.for_step_s(pulse.predicted_s)
        has_work = self._sinks or self._num_counted or pulse.predicted_s is not None
        if has_work and pulse.seconds > limit_s:
            raise EngineFailed("hung", f"the engine has been at one step for more than {limit_s:g} s")

    def _handle(self, message: FromEngine, listener: Listener) -> None:
        match message:
            case Outputs():
                self._deliver(message)
            case Accepted():
                self._answer(message.seq_ids, None)
            case Rejection():
                self._answer(message.seq_ids, Rejected(message.code, message.message, message.retry_after_s))
            case Profiled():
                profile = self._profiles.get(message.profile_id)
                if profile is not None and not profile.done():
                    profile.set_result(message)
            case Snapshot():
                if self._told is not None:
                    self._told(message)
            case Pulse():
                self._check_progress(message)
            case Progress():
                listener.on_progress(message)
            case Ready():
                self._ready = self._last_ready = message
                if self._shut == "no":
                    self._up.set()
                self._spell()
                self._observer.engine_up(True)
                listener.on_ready(message)
            case Fatal():
                raise EngineFailed(message.kind, message.message)

    def _answer(self, seq_ids: list[int], refusal: Rejected | None) -> None:
        question = self._questions.get(seq_ids[0]) if seq_ids else None
        if question is None or question.answer.done():  # aborted meanwhile
            return
        if refusal is None:
            question.answer.set_result(None)
            return
        for seq_id in question.seq_ids:  # the engine does not know them: nothing to abort
            self._forget(seq_id)
        question.answer.set_exception(refusal)

    def _deliver(self, frame: Outputs) -> None:
        self._stats, self.stats_at = frame.stats, time.monotonic()
        for output in frame.outputs:
            sink = self._sinks.get(output.seq_id)
            if sink is None:  # aborted
                continue
            if self._unread:  # not by `first`, which does not come again for what was submitted with what it had
                self._note_read(output.seq_id)
            sink.deliver(output)
            if output.finish is not None:
                self._forget(output.seq_id)
        self._observer.on_stats(frame.stats)
        for step in frame.steps:
            self._observer.on_step(step)

    def _lose(self, message: str) -> None:
        was_up = self._ready is not None
        self._ready = self._writer = None
        self._up.clear()
        for question in self._questions.values():
            if question.answer.done():  # accepted, though submit() had no turn yet to return: its sink is told
                continue
            for seq_id in question.seq_ids:
                self._sinks.pop(seq_id, None)
            question.answer.set_exception(EngineUnavailable("The engine stopped.", self.retry_after_s))
        for profile in self._profiles.values():
            if not profile.done():
                profile.set_exception(EngineUnavailable("The engine stopped.", self.retry_after_s))
        lost = self._by_sink()
        others = max(0, self._num_counted - len(self._sinks))  # sequences of other gateways, whatever their requests
        self._sinks.clear()
        self._unread.clear()
        self.unread_tokens = 0
        self.death = Death(message, len(lost) + others)
        if self._from_outside is not None:
            _explain(self.death, self._from_outside)
            self._from_outside = None
        for sink, seq_ids in lost:
            sink.fail(self.death, seq_ids)
        self._stats = None
        if was_up:
            self._observer.engine_up(False)


def _explain(death: Death, from_outside: bool) -> None:
    death.from_outside = from_outside
    death.explained.set()
