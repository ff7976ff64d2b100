"""The engine's client, against real processes that speak the protocol and do not compute."""

import asyncio
from contextlib import suppress
from typing import cast

import msgspec
import pytest

from gateway.engine_metrics import NO_STATS
from gateway.engines.client import EngineUnavailable
from gateway.engines.socket import EngineFailed, Listener, Patience, SocketEngine
from scheduler.protocol import (
    Abort,
    Accepted,
    EngineConfig,
    Fatal,
    FirstToken,
    FrameSplitter,
    FromEngine,
    Output,
    Outputs,
    Pulse,
    Snapshot,
    Submit,
    encode_frame,
    to_engine_decoder,
)
from scheduler.types import Rejected, SamplingParams
from tests.fixtures.engines import PATIENCE_S, Changes, RecordingObserver, RecordingSink, World, started, world
from tests.fixtures.fake_engine import Order, ready

PULSES_S = 0.5  # ten times as long as between the fake engine's pulses
READY = ready(EngineConfig(model="none", format="dummy", socket_path=""))


async def test_outputs_reach_the_sink_in_order_and_the_end_is_marked() -> None:
    async with started() as world:
        sink = await world.ask(11, 12, 13)
        await sink.finished()
    assert sink.tokens == [11, 12, 13]
    assert [output.finish for output in sink.outputs] == [None, None, "length"]
    assert sink.outputs[0].first is not None
    assert sink.failures == []


async def test_many_requests_at_once_do_not_mix() -> None:
    async with started() as world:
        sinks = await asyncio.gather(*(world.ask(n, n + 1) for n in range(100)))
        await asyncio.gather(*(sink.finished() for sink in sinks))
    assert [sink.tokens for sink in sinks] == [[n, n + 1] for n in range(100)]


async def test_every_choice_of_a_request_goes_to_its_sink() -> None:
    async with started() as world:
        sink = await world.ask(5, choices=3)
        await sink.changes.until(lambda: len(sink.outputs) == 3)
    assert len({output.seq_id for output in sink.outputs}) == 3


async def test_ids_are_never_used_twice() -> None:
    engine = SocketEngine(RecordingObserver())
    ids = engine.new_ids(3) + engine.new_ids(1) + engine.new_ids(2)
    assert len(set(ids)) == 6


async def test_observer_hears_of_steps_and_stats() -> None:
    async with started() as world:
        sink = await world.ask(1, 2)
        await sink.finished()
        assert world.engine.stats is not None
    assert [step.kind for step in world.observer.steps] == ["decode", "decode"]
    assert world.observer.stats[-1].blocks_total == 100


async def test_a_refusal_is_raised_with_its_reason() -> None:
    async with started() as world:
        with pytest.raises(Rejected) as refused:
            await world.ask(Order.REFUSE)
    assert (refused.value.code, refused.value.retry_after_s) == ("queue_full", 2.5)


async def test_without_an_engine_nothing_is_accepted() -> None:
    engine = SocketEngine(RecordingObserver())
    engine.retry_after_s = 7.0
    assert engine.ready is None
    async with started() as world:
        request = world.request(1)
    with pytest.raises(EngineUnavailable) as refused:
        await engine.submit(request, RecordingSink())
    assert refused.value.retry_after_s == 7.0


async def test_an_engine_that_does_not_answer_is_unavailable() -> None:
    async with started() as world:
        world.engine._answer_timeout_s = 0.01
        with pytest.raises(EngineUnavailable, match="does not answer"):
            await world.ask(Order.IGNORE)
        assert await num_aborted(world) == 1


async def test_one_that_is_shut_takes_nothing_new_and_goes_on_with_what_it_has() -> None:
    async with started() as world:
        sink = await world.ask(Order.LATE)
        ready = world.engine.ready
        for pause, told in ((False, None), (True, ready)):
            world.engine.shut(pause)
            assert (world.engine.ready, world.engine.said, world.engine.is_paused) == (told, ready, pause)
            with pytest.raises(EngineUnavailable):
                await world.ask(1)
        waiting = asyncio.create_task(world.engine.available())
        assert not await world.engine.emptied(0.1) and not waiting.done() and not sink.failures
        world.engine.open()
        await asyncio.wait_for(waiting, PATIENCE_S)
        await world.ask(1)
        await sink.finished()
        assert await world.engine.emptied(PATIENCE_S)
        assert world.observer.drains == [True, True, False]


async def test_what_is_moved_is_forgotten_by_the_engine_and_told_once_a_request() -> None:
    async with started() as world:
        sink, unanswered = await world.ask(Order.HANG, choices=2), RecordingSink()
        asking = asyncio.create_task(world.engine.submit(world.request(Order.IGNORE), unanswered))
        await asyncio.sleep(0)
        world.engine.shut(pause=False)
        assert world.engine.move("moved") == 2
        await asking  # counts as accepted
        for each, size in ((sink, 2), (unanswered, 1)):
            ((death, seq_ids),) = each.lost
            assert (death.message, death.planned, death.num_requests, len(seq_ids)) == ("moved", True, 0, size)
            assert death.explained.is_set() and death.from_outside
        assert (world.engine.num_open, world.engine.unread_tokens) == (0, 0)
        world.engine.open()
        assert await num_aborted(world) == 3


async def test_an_aborted_request_hears_nothing_more() -> None:
    async with started() as world:
        sink = RecordingSink()
        request = world.request(Order.LATE)
        await world.engine.submit(request, sink)
        world.engine.abort(request.seq_ids)
        assert await num_aborted(world) == 1  # this made the engine answer the first one too
    assert sink.outputs == []
    assert sink.failures == []


async def test_abort_is_idempotent_and_silent_about_what_has_ended() -> None:
    async with started() as world:
        sink = RecordingSink()
        request = world.request(1)
        await world.engine.submit(request, sink)
        await sink.finished()
        world.engine.abort(request.seq_ids)
        world.engine.abort([*request.seq_ids, 999])
        assert await num_aborted(world) == 0


async def test_abort_before_acceptance_ends_the_wait() -> None:
    async with started() as world:
        request = world.request(Order.IGNORE, choices=2)
        submission = asyncio.create_task(world.engine.submit(request, RecordingSink()))
        await asyncio.sleep(0)  # it begins to wait
        world.engine.abort(request.seq_ids)
        await submission
        assert await num_aborted(world) == 2


async def test_a_cancelled_submission_is_aborted() -> None:
    async with started() as world:
        submission = asyncio.create_task(world.engine.submit(world.request(Order.IGNORE), RecordingSink()))
        await asyncio.sleep(0)
        submission.cancel()
        with pytest.raises(asyncio.CancelledError):
            await submission
        assert await num_aborted(world) == 1


@pytest.mark.parametrize("order", [Order.DIE, Order.GARBAGE, Order.CLOSE, Order.FATAL])
async def test_the_end_of_an_engine_fails_every_open_request_once(order: Order) -> None:
    async with started() as world:
        world.time.max_sleeps = 1  # no restart
        waiting = await world.ask(Order.HANG, choices=2)
        pending = asyncio.create_task(world.ask(Order.IGNORE))
        await asyncio.sleep(0)
        with suppress(EngineUnavailable):  # its acceptance may be lost in the same read as the garbage
            await world.ask(order)
        await waiting.failed()
        with pytest.raises(EngineUnavailable):
            await pending
        assert world.engine.ready is None
        assert world.observer.ups == [True, False]
    assert len(waiting.failures) == 1


async def test_a_request_accepted_in_the_engines_last_breath_is_failed_too() -> None:
    """Acceptance and end come in one read, before submit() has a turn to return."""
    engine = SocketEngine(RecordingObserver())
    reader, writer, listener = asyncio.StreamReader(), UnconnectedWriter(), Listener(print, print)
    reader.feed_data(encode_frame(READY))
    conversation = asyncio.create_task(engine.converse(reader, cast(asyncio.StreamWriter, writer), listener))
    await asyncio.sleep(0)
    sink = RecordingSink()
    submission = asyncio.create_task(engine.submit(Submit([1], [5], SamplingParams(8), [0]), sink))
    await asyncio.sleep(0)
    reader.feed_data(encode_frame(Accepted([1])) + encode_frame(Fatal("memory", "no memory left")))
    with pytest.raises(EngineFailed, match="no memory left"):
        await conversation
    await submission
    assert len(sink.failures) == 1


async def test_an_engine_that_has_work_and_says_nothing_is_given_up() -> None:
    async with started(patience=Patience(silence_s=0.02)) as world:
        world.time.max_sleeps = 1
        sink = await world.ask(Order.HANG)
        await sink.failed()


async def test_an_engine_that_stands_still_is_given_up_and_replaced() -> None:
    async with started(patience=Patience(silence_s=0.05)) as world:
        sink = await world.ask(Order.STOP)
        await sink.failed()
        await world.observer.changes.until(lambda: world.observer.ups == [True, False, True])
        after = await world.ask(1, 2)
        await after.finished()
    assert not sink.failures[0].from_outside


async def test_a_long_step_of_an_engine_that_lives_is_no_silence() -> None:
    """Its pulse says that a step which was to take half a minute has taken a whole one: ten periods, each with a pulse,
    and then the answer."""
    async with started(patience=Patience(silence_s=PULSES_S, least_s=1.0, multiple=10.0)) as world:
        sink = await world.ask(Order.TOIL, 10, 60_000, 30_000)
        await sink.finished()
    assert sink.failures == [] and sink.tokens == [Order.TOIL]


@pytest.mark.parametrize(("at_it_ms", "predicted_ms"), [(61_000, 1_000), (101_000, 10_000), (181_000, 0)])
async def test_a_step_that_takes_many_times_what_it_should_is_given_up(at_it_ms: int, predicted_ms: int) -> None:
    """With 0, nobody can tell what it should take."""
    async with started() as world:
        world.engine._patience = Patience()
        world.time.max_sleeps = 1
        sink = await world.ask(Order.TOIL, 1, at_it_ms - 2_000, predicted_ms)
        await sink.finished()
        sink = await world.ask(Order.TOIL, 1, at_it_ms, predicted_ms)
        await sink.failed()


def counted(**numbers: int) -> bytes:
    return encode_frame(Outputs([], [], msgspec.structs.replace(NO_STATS, **numbers)))


async def heard(*frames: bytes, patience: Patience) -> EngineFailed | None:
    """What a gateway without work of its own makes of an engine that says this and then nothing, for three periods."""
    engine = SocketEngine(RecordingObserver(), patience=patience)
    reader, writer, listener = asyncio.StreamReader(), UnconnectedWriter(), Listener(print, print)
    reader.feed_data(encode_frame(READY) + b"".join(frames))
    conversation = asyncio.create_task(engine.converse(reader, cast(asyncio.StreamWriter, writer), listener))
    periods, check = Changes(), engine._check_silence
    num_periods = 0

    def count(open_before: frozenset[int], was_counted: bool) -> None:
        nonlocal num_periods
        num_periods += 1
        periods.note()
        check(open_before, was_counted)

    engine._check_silence = count  # type: ignore[method-assign]
    conversation.add_done_callback(lambda done: periods.note())
    await periods.until(lambda: conversation.done() or num_periods == 3)
    conversation.cancel()
    (ended,) = await asyncio.gather(conversation, return_exceptions=True)
    return ended if isinstance(ended, EngineFailed) else None


@pytest.mark.parametrize("kind", ["running", "waiting", "compiling"])
async def test_an_engine_is_given_up_for_other_gateways_too(kind: str) -> None:
    busy = counted(**{kind: 1})
    brief = Patience(silence_s=0.005)
    for told in ((busy,), (busy, encode_frame(Pulse(59.0, 1.0)))):
        silent = await heard(*told, patience=brief)
        assert silent is not None and silent.kind == "hung" and "said nothing" in silent.message
    for pulse in (Pulse(61.0, 1.0), Pulse(181.0, None)):
        stuck = await heard(busy, encode_frame(pulse), patience=brief)
        assert stuck is not None and "at one step" in stuck.message


async def test_a_step_that_no_count_tells_of_yet_is_work_of_other_gateways() -> None:
    """The first after an idle time: counts come with the ends of steps."""
    stuck = await heard(counted(), encode_frame(Pulse(61.0, 1.0)), patience=Patience(silence_s=0.005))
    assert stuck is not None and stuck.kind == "hung"


@pytest.mark.parametrize("last", [counted(), counted(blocks_cached=3, steps=9)])
async def test_an_engine_whose_work_has_ended_may_be_silent(last: bytes) -> None:
    brief = Patience(silence_s=0.005)
    assert await heard(counted(running=1), last, encode_frame(Pulse(181.0, None)), patience=brief) is None


async def test_who_waits_for_an_engine_hears_of_the_next_one() -> None:
    async with started() as world:
        await world.engine.available()
        sink = await world.ask(Order.DIE)
        await sink.failed()
        async with asyncio.timeout(PATIENCE_S):
            await world.engine.available()
        assert world.engine.ready is not None
        death = sink.failures[0]
        assert death.num_requests == 1 and death.explained.is_set() and not death.from_outside


async def test_a_process_that_somebody_else_killed_is_told_apart() -> None:
    async with started() as world:
        sink = await world.ask(Order.KILLED)
        await sink.failed()
        async with asyncio.timeout(PATIENCE_S):
            await sink.failures[0].explained.wait()
        assert sink.failures[0].from_outside


async def test_an_idle_engine_may_be_silent() -> None:
    async with started(patience=Patience(silence_s=0.005)) as world:
        silences = world.observer.changes
        engine = world.engine
        seen: list[frozenset[int]] = []
        check = engine._check_silence

        def count(open_before: frozenset[int], was_counted: bool) -> None:
            check(open_before, was_counted)
            seen.append(open_before)
            silences.note()

        engine._check_silence = count  # type: ignore[method-assign]
        await silences.until(lambda: len(seen) > 3)
        assert engine.ready is not None


class Conversation:
    """With an engine that is up and says what the test gives it to say."""

    def __init__(self) -> None:
        self.engine = SocketEngine(RecordingObserver())
        self._begin()

    def _begin(self) -> None:
        self.writer = UnconnectedWriter()
        self._reader = asyncio.StreamReader()
        writer = cast(asyncio.StreamWriter, self.writer)
        self.task = asyncio.create_task(self.engine.converse(self._reader, writer, Listener(print, print)))

    async def again(self, *messages: FromEngine) -> None:
        """With the next engine."""
        self._begin()
        await self.say(*messages)

    async def say(self, *messages: FromEngine) -> None:
        """All in one read."""
        self._reader.feed_data(b"".join(encode_frame(message) for message in messages))
        for _ in range(3):
            await asyncio.sleep(0)

    async def end(self) -> None:
        self._reader.feed_eof()
        await asyncio.wait({self.task})
        assert isinstance(self.task.exception(), EngineFailed)

    def submit(self, *seq_ids: int, generated: list[int] | None = None) -> tuple[asyncio.Task[None], RecordingSink]:
        ids, sink = list(seq_ids), RecordingSink()
        again = [] if generated is None else [generated] * len(ids)
        request = Submit(ids, [5] * 10, SamplingParams(8), [0] * len(ids), generated=again)
        return asyncio.create_task(self.engine.submit(request, sink)), sink

    @property
    def aborted(self) -> list[int]:
        sent = [to_engine_decoder.decode(body) for body in FrameSplitter().feed(self.writer.sent)]
        return [seq_id for message in sent if isinstance(message, Abort) for seq_id in message.seq_ids]


async def test_a_prompt_counts_as_unread_until_its_first_output_also_where_it_was_submitted_again() -> None:
    with_engine = Conversation()
    await with_engine.say(READY)
    for seq_ids, generated, first in (
        ([1, 2], None, FirstToken(0.0, 0.0, 0)),
        ([3, 4], [7], None),
    ):
        submission, sink = with_engine.submit(*seq_ids, generated=generated)
        await with_engine.say(Accepted(seq_ids))
        await submission
        assert with_engine.engine.unread_tokens == 10
        await with_engine.say(Outputs([Output(seq_ids[0], [8], None, None, first)], [], NO_STATS))
        assert with_engine.engine.unread_tokens == 0 and len(sink.outputs) == 1
    await with_engine.end()


async def test_who_is_cancelled_as_it_is_accepted_leaves_nothing_in_the_engine() -> None:
    with_engine = Conversation()
    await with_engine.say(READY)
    submission, _ = with_engine.submit(1, 2)
    await asyncio.sleep(0)
    with_engine.engine._handle(Accepted([1, 2]), Listener(print, print))
    submission.cancel()
    with pytest.raises(asyncio.CancelledError):
        await submission
    assert with_engine.aborted == [1, 2]
    assert (with_engine.engine.num_open, with_engine.engine.unread_tokens) == (0, 0)
    await with_engine.end()


async def test_what_is_submitted_twice_is_unread_once() -> None:
    with_engine = Conversation()
    await with_engine.say(READY)
    for _ in range(2):
        submission, _ = with_engine.submit(1, 2)
        await with_engine.say(Accepted([1, 2]))
        await submission
    assert with_engine.engine.unread_tokens == 10
    with_engine.engine.abort([1, 2])
    assert with_engine.engine.unread_tokens == 0
    await with_engine.end()


@pytest.mark.parametrize(
    ("counted", "num_requests"),
    [
        ({"running": 3}, 1),
        ({"running": 2, "waiting": 1}, 1),
        ({}, 1),
        ({"running": 4}, 2),
        ({"compiling": 3, "running": 2}, 3),
    ],
)
async def test_a_death_knows_of_requests_of_other_gateways(counted: dict[str, int], num_requests: int) -> None:
    with_engine = Conversation()
    await with_engine.say(READY)
    submission, sink = with_engine.submit(1, 2, 3)
    await with_engine.say(Accepted([1, 2, 3]), Outputs([], [], msgspec.structs.replace(NO_STATS, **counted)))
    await submission
    await with_engine.end()
    assert [death.num_requests for death in sink.failures] == [num_requests]


@pytest.mark.parametrize("comes_first", [True, False])
async def test_a_death_is_explained_whether_its_cause_or_its_end_is_heard_of_first(comes_first: bool) -> None:
    with_engine = Conversation()
    engine = with_engine.engine
    engine.explain(from_outside=True)  # of one that this gateway has never seen
    await with_engine.say(READY)
    if comes_first:
        engine.explain(from_outside=True)
    await with_engine.end()
    first = engine.death
    assert first is not None and first.explained.is_set() == comes_first
    if not comes_first:
        engine.explain(from_outside=True)
    assert first.explained.is_set() and first.from_outside
    await with_engine.again(READY)
    engine.explain(from_outside=False)
    assert first.from_outside  # that was the next one's
    await with_engine.end()
    second = engine.death
    assert second is not None and second is not first
    assert second.explained.is_set() and not second.from_outside
    await with_engine.again(READY)
    await with_engine.end()
    assert engine.death is not None and not engine.death.explained.is_set()


class UnconnectedWriter:
    """As much of a StreamWriter as the client uses."""

    def __init__(self) -> None:
        self.transport = self
        self.sent = b""

    def write(self, data: bytes) -> None:
        self.sent += data

    def abort(self) -> None:
        pass


async def num_aborted(world: World) -> int:
    """As the engine counts the ids of Abort frames."""
    sink = await world.ask(Order.LATE)
    await world.ask(1)
    await sink.finished()
    return sink.tokens[0]


async def test_who_watches_is_told_what_the_engine_shows() -> None:
    async with started() as world:
        changes, seen = Changes(), list[Snapshot]()

        def told(snapshot: Snapshot) -> None:
            seen.append(snapshot)
            changes.note()

        world.engine.watch(5.0, told)
        await changes.until(lambda: bool(seen))
        assert seen[0].blocks.num_blocks == 100


async def test_nobody_is_asked_where_there_is_no_engine() -> None:
    async with world() as made:
        made.engine.watch(5.0, lambda snapshot: None)
        assert made.engine.ready is None
