"""Several engines as one: where requests go, and what becomes of them when one cannot take them."""

import asyncio
from dataclasses import dataclass, field
from functools import partial

import msgspec
import pytest

from gateway.engine_metrics import NO_STATS
from gateway.engines.affinity import PIECE_TOKENS, Seen, pieces
from gateway.engines.client import EngineUnavailable, Sink
from gateway.engines.router import ANSWER_TOKENS, STALE_S, Router
from scheduler.protocol import Profile, Profiled, Submit, Vocabulary
from scheduler.types import Rejected, SamplingParams
from tests.fixtures.engines import RecordingSink
from tests.fixtures.fakes import DEADLINE_S, FakeEngine, toy_ready

PREFIX = list(range(1000))


@dataclass
class Routed(FakeEngine):
    """Answers when the test says so, unless automatic."""

    automatic: bool = False
    retry_after_s: float = 5.0
    unread_tokens: int = 0
    stats_at: float = 0.0
    taught: list[Vocabulary] = field(default_factory=list)
    cached: list[int] = field(default_factory=list)  # what was expected of each prompt

    async def submit(self, request: Submit, sink: Sink, cached_tokens: int = 0) -> None:
        self.cached.append(cached_tokens)
        await super().submit(request, sink)

    def has(self, seq_id: int) -> bool:
        return seq_id in self.playing

    def teach(self, vocabulary: Vocabulary) -> None:
        self.taught.append(vocabulary)

    async def profile(self, request: Profile, limit_s: float) -> Profiled:
        return Profiled(request.profile_id, "done", self.num_open)


class World:
    def __init__(self, num_engines: int = 2, prefix_caching: bool = True) -> None:
        self.engines = [Routed() for _ in range(num_engines)]
        self.now = 100.0
        self.router = Router(self.engines, prefix_caching=prefix_caching, clock=lambda: self.now)

    async def ask(self, prompt: list[int], n: int = 1, salt: bytes = b"") -> int:
        """The engine that took it."""
        before = [len(engine.submitted) for engine in self.engines]
        await self.router.submit(self.request(prompt, n, salt), RecordingSink())
        (taken,) = (i for i, engine in enumerate(self.engines) if len(engine.submitted) > before[i])
        return taken

    def request(self, prompt: list[int], n: int = 1, salt: bytes = b"") -> Submit:
        return Submit(self.router.new_ids(n), prompt, SamplingParams(max_tokens=9), [0] * n, salt=salt)


async def test_equal_engines_take_turns() -> None:
    world = World(3)
    taken = []
    for number in range(6):
        taken.append(await world.ask([number]))
        for engine in world.engines:
            engine.playing.clear()
    assert sorted(taken[:3]) == sorted(taken[3:]) == [0, 1, 2]


async def test_work_goes_to_the_engine_that_has_least() -> None:
    world = World()
    world.engines[0].unread_tokens = 3 * ANSWER_TOKENS
    assert [await world.ask([number]) for number in range(5)].count(1) == 4
    assert [engine.num_open for engine in world.engines] == [1, 4]


async def test_what_other_gateways_have_there_counts_while_it_is_fresh() -> None:
    world = World()
    world.engines[0].stats, world.engines[0].stats_at = msgspec.structs.replace(NO_STATS, running=3, waiting=1), 100.0
    assert [await world.ask([number]) for number in range(4)] == [1, 1, 1, 1]
    for engine in world.engines:
        engine.playing.clear()
    world.now += STALE_S + 1
    assert 0 in [await world.ask([number]) for number in range(2)]


async def test_a_prompt_follows_its_beginning() -> None:
    world = World()
    first = await world.ask([*PREFIX, 1, 2, 3])
    assert {await world.ask([*PREFIX, number]) for number in range(4)} == {first}
    assert world.engines[first].cached == [0, *[len(PREFIX) // PIECE_TOKENS * PIECE_TOKENS] * 4]
    other = [await world.ask([-number % 5000 + 2000, *PREFIX]) for number in range(4)]
    assert other == [1 - first] * 4  # where there is less to do


async def test_until_the_engine_that_has_it_is_busier_than_it_is_worth() -> None:
    world = World()
    taken = [await world.ask([*PREFIX, number]) for number in range(40)]
    spilled = taken.index(1 - taken[0])
    assert PREFIX[-1] // ANSWER_TOKENS <= spilled <= len(PREFIX) // ANSWER_TOKENS + 1
    assert abs(taken[spilled:].count(0) - taken[spilled:].count(1)) <= spilled + 2


@pytest.mark.parametrize("reason", ["another salt", "no prefix cache", "a new engine"])
async def test_a_beginning_that_its_cache_does_not_hold_draws_nothing(reason: str) -> None:
    world = World(prefix_caching=reason != "no prefix cache")
    taken = await world.ask([*PREFIX, 1])
    first = world.engines[taken]
    first.playing.clear()
    if reason == "a new engine":
        first.die()
        first.rise()
    first.unread_tokens = 1
    assert await world.ask([*PREFIX, 2], salt=b"x" if reason == "another salt" else b"") == 1 - taken


async def test_a_full_queue_passes_on_and_the_last_refusal_counts() -> None:
    world = World(3)
    full = Rejected("queue_full", "full", 1.5)
    world.engines[0].refusal = world.engines[1].refusal = lambda submit: full
    for number in range(3):
        await world.router.submit(world.request([number]), RecordingSink())
    assert world.engines[2].num_open == 3
    world.engines[2].refusal = lambda submit: full
    with pytest.raises(Rejected) as refused:
        await world.router.submit(world.request([9]), RecordingSink())
    assert refused.value is full


@pytest.mark.parametrize("no", [Rejected("queue_full", "full", 1.5), EngineUnavailable("It does not answer.")])
async def test_a_prompt_follows_its_beginning_to_where_that_was_accepted(no: Exception) -> None:
    world = World()
    world.engines[1].unread_tokens = 1  # asked second
    world.engines[0].refusal = lambda submit: no
    await world.router.submit(world.request([*PREFIX, 1]), RecordingSink())
    assert [len(engine.playing) for engine in world.engines] == [0, 1]
    world.engines[0].refusal = lambda submit: None
    assert {await world.ask([*PREFIX, number]) for number in range(4)} == {1}


async def test_a_refusal_forgets_no_more_than_what_it_refused() -> None:
    world = World()
    taken = await world.ask([*PREFIX, 1])
    engine = world.engines[taken]
    for each in world.engines:
        each.refusal = lambda submit: Rejected("too_long", "too long", None)
    with pytest.raises(Rejected):
        await world.router.submit(world.request([*PREFIX, *PREFIX]), RecordingSink())
    for each in world.engines:
        each.refusal = lambda submit: None
    assert await world.ask([*PREFIX, *PREFIX]) == taken
    assert engine.cached[-1] == len(PREFIX) // PIECE_TOKENS * PIECE_TOKENS


async def test_what_begins_alike_follows_before_the_first_is_answered() -> None:
    world = World()
    asked: list[int] = []

    async def think(number: int, request: Submit, sink: Sink, cached_tokens: int = 0) -> None:
        asked.append(number)
        await asyncio.Event().wait()

    for number, engine in enumerate(world.engines):
        engine.submit = partial(think, number)  # type: ignore[method-assign]
    requests = [world.request([*PREFIX, number]) for number in range(3)]
    asking = [asyncio.create_task(world.router.submit(request, RecordingSink())) for request in requests]
    await asyncio.sleep(0)
    assert len(asked) == 3 and len(set(asked)) == 1
    for each in asking:
        each.cancel()
    await asyncio.wait(asking)


async def test_another_refusal_is_the_requests_own_fault() -> None:
    world = World()
    for engine in world.engines:
        engine.refusal = lambda submit: Rejected("too_long", "too long", None)
    with pytest.raises(Rejected, match="too long"):
        await world.router.submit(world.request([1]), RecordingSink())
    assert sum(len(engine.submitted) for engine in world.engines) == 1


async def test_an_engine_that_dies_while_it_is_asked_passes_on_once() -> None:
    world = World(3)
    for engine in world.engines[:2]:
        engine.refusal = lambda submit: EngineUnavailable("gone")
    world.engines[2].unread_tokens = 10_000  # asked last
    with pytest.raises(EngineUnavailable, match="gone"):
        await world.router.submit(world.request([1]), RecordingSink())
    assert len(world.engines[2].submitted) == 0
    world.engines[1].refusal = lambda submit: None
    for number in range(2):
        await world.router.submit(world.request([number]), RecordingSink())
    assert world.engines[1].num_open == 2


async def test_the_dead_get_nothing_and_without_any_it_says_so() -> None:
    world = World()
    world.engines[0].die()
    assert {await world.ask([number]) for number in range(4)} == {1}
    assert world.router.ready is not None
    world.engines[1].die()
    assert world.router.ready is None
    world.engines[1].retry_after_s = 2.0
    with pytest.raises(EngineUnavailable) as error:
        await world.router.submit(world.request([1]), RecordingSink())
    assert error.value.retry_after_s == 2.0


async def test_one_that_drains_gets_nothing_and_where_it_is_the_last_that_is_a_pause() -> None:
    world = World()
    world.engines[0].is_draining = world.engines[0].is_paused = True
    assert {await world.ask([number]) for number in range(4)} == {1}
    assert not world.router.is_paused
    world.engines[1].die()
    assert world.router.is_paused and world.router.ready is world.engines[0].ready
    with pytest.raises(EngineUnavailable):
        await world.router.submit(world.request([1]), RecordingSink())
    world.engines[0].is_paused = False
    assert not world.router.is_paused


async def test_one_that_rises_is_enough_to_be_available() -> None:
    world = World()
    for engine in world.engines:
        engine.die()
    waiting = asyncio.create_task(world.router.available())
    await asyncio.sleep(0)
    assert not waiting.done()
    world.engines[1].rise()
    await asyncio.wait_for(waiting, DEADLINE_S)


async def test_outputs_and_ends_of_all_come_to_the_same_sink_and_ids_are_never_the_same() -> None:
    world, sink = World(), RecordingSink()
    requests = [world.request([number], n=2) for number in range(2)]
    for request in requests:
        await world.router.submit(request, sink)
    assert [len(engine.playing) for engine in world.engines] == [2, 2]
    world.engines[0].stats = msgspec.structs.replace(NO_STATS, steps=7)
    of_first = world.engines[0].submitted[0].seq_ids
    assert [world.router.replica_of(request.seq_ids[0]) for request in requests] == [0, 1]
    assert world.router.stats_of(of_first[0]) == world.engines[0].stats
    assert world.router.stats_of(999) is None
    world.engines[0].die()
    assert [(death.num_requests, ids) for death, ids in sink.lost] == [(1, set(of_first))]
    world.router.abort([seq_id for request in requests for seq_id in request.seq_ids])
    assert not world.engines[1].playing


async def test_what_is_not_a_requests_reaches_the_right_ones() -> None:
    world = World()
    world.router.teach(Vocabulary([], [], []))
    assert [len(engine.taught) for engine in world.engines] == [1, 1]
    await world.ask([1])
    profiled = await world.router.profile(Profile(1, 1, 1.0, "", 1), 1.0)
    assert profiled.num_steps == 1  # by the one that has work
    world.engines[1].ready = toy_ready(max_model_len=99)
    assert world.router.ready is not None and world.router.ready.max_model_len == 99
    assert world.router.replicas == tuple(world.engines)


def test_pieces_are_named_by_all_before_them() -> None:
    names = list(pieces(PREFIX, b""))
    assert len(names) == (len(PREFIX) - 1) // PIECE_TOKENS and len(set(names)) == len(names)
    assert list(pieces([*PREFIX[:700], 5, *PREFIX[701:]], b""))[: 700 // PIECE_TOKENS] == names[: 700 // PIECE_TOKENS]
    assert set(pieces([5, *PREFIX[1:]], b"")).isdisjoint(names)
    assert set(pieces(PREFIX, b"x")).isdisjoint(names)
    assert list(pieces([1] * PIECE_TOKENS, b"")) == []  # the last token is computed
    assert list(pieces([0], b"")) == []


def test_what_was_seen_is_bounded_and_forgets_ends_first() -> None:
    seen, names = Seen(), list(pieces(PREFIX, b""))
    seen.note(names, max_tokens=5 * PIECE_TOKENS)
    assert seen.matched(names) == 5 * PIECE_TOKENS
    seen.note(list(pieces([7] * 200, b"")), max_tokens=5 * PIECE_TOKENS)
    assert seen.matched(names) == 2 * PIECE_TOKENS
    seen.clear()
    assert seen.matched(names) == 0
