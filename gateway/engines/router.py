"""Several engines as one: each request goes where it costs least.

An engine's cost of a request is the work that it has, in tokens, and the part of the prompt that it would have to
compute. What it has: prompts of ours that it has not read yet, ANSWER_TOKENS for each sequence of ours, and as much
for each of other gateways, as the engine counted them last. So a prompt follows its prefix (cf. SGLang's cache-aware
and vLLM's least-loaded routing; here they are one sum) until the engine that has it is busier than the prefix is worth.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from gateway.engines.affinity import PIECE_TOKENS, Seen, pieces
from gateway.engines.client import EngineClient, EngineUnavailable, Replica, Sink
from scheduler.protocol import EngineStats, Profile, Profiled, Ready, Submit, Vocabulary
from scheduler.types import Rejected

ANSWER_TOKENS = 128  # what a sequence may still generate: nobody knows, and it is only compared
STALE_S = 3.0  # an engine counts once a second at least; what it said before may be long over
MAX_LOST = 2  # engines that may die while they are asked to take one request


class RoutedEngine(EngineClient, Replica, Protocol):
    """What a SocketEngine is."""

    retry_after_s: float

    @property
    def takes_work(self) -> bool: ...
    @property
    def unread_tokens(self) -> int: ...
    @property
    def stats_at(self) -> float: ...
    def has(self, seq_id: int) -> bool: ...
    def teach(self, vocabulary: Vocabulary) -> None: ...
    async def submit(self, request: Submit, sink: Sink, cached_tokens: int = 0) -> None: ...
    async def profile(self, request: Profile, limit_s: float) -> Profiled: ...


class Router:
    """An EngineClient and a ProfilingEngine. Keeps nothing of requests but what prompts its engines have seen."""

    def __init__(
        self,
        engines: Sequence[RoutedEngine],
        *,
        prefix_caching: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """clock: the one by which engines say when they counted."""
        self._engines = tuple(engines)
        self._seen = [Seen() for _ in engines]
        self._prefix_caching = prefix_caching
        self._clock = clock
        self._lives: list[Ready | None] = [None for _ in engines]  # of which `_seen` tells
        self._next_id = 1
        self._turn = 0

    @property
    def replicas(self) -> Sequence[RoutedEngine]:
        return self._engines

    @property
    def ready(self) -> Ready | None:
        """Of the one that can do least: each has measured its own memory."""
        open_now = [engine.ready for engine in self._engines if engine.takes_work]
        known = [ready for ready in open_now or (engine.ready for engine in self._engines) if ready is not None]
        return min(known, key=lambda ready: ready.max_model_len, default=None)

    @property
    def is_paused(self) -> bool:
        return not any(engine.takes_work for engine in self._engines) and any(each.is_paused for each in self._engines)

    @property
    def retry_after_s(self) -> float:
        return min(engine.retry_after_s for engine in self._engines)

    def teach(self, vocabulary: Vocabulary) -> None:
        for engine in self._engines:
            engine.teach(vocabulary)

    def new_ids(self, count: int) -> list[int]:
        first, self._next_id = self._next_id, self._next_id + count
        return list(range(first, self._next_id))

    def replica_of(self, seq_id: int) -> int:
        return next((number for number, engine in enumerate(self._engines) if engine.has(seq_id)), 0)

    def stats_of(self, seq_id: int) -> EngineStats | None:
        return next((engine.stats for engine in self._engines if engine.has(seq_id)), None)

    async def available(self) -> None:
        waiting = [asyncio.create_task(engine.available()) for engine in self._engines]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waiting:
                each.cancel()

    async def submit(self, request: Submit, sink: Sink) -> None:
        """An engine whose queue is full passes it on to the next, and so does one that dies before it has answered,
        once."""
        failure: Rejected | EngineUnavailable | None = None
        num_lost = 0
        order, names = self._by_cost(request)
        for index, cached in order:
            self._note(index, names)  # before it answers: what begins alike and comes meanwhile follows
            try:
                return await self._engines[index].submit(request, sink, cached)
            except Rejected as refusal:
                self._seen[index].forget(names[cached // PIECE_TOKENS :])
                if refusal.code != "queue_full":
                    raise
                failure = refusal
            except EngineUnavailable as error:
                self._seen[index].forget(names[cached // PIECE_TOKENS :])
                num_lost += 1
                failure = error
                if num_lost == MAX_LOST:
                    raise
        raise failure or EngineUnavailable("No engine is running.", self.retry_after_s)

    def abort(self, seq_ids: list[int]) -> None:
        for engine in self._engines:
            engine.abort(seq_ids)

    async def profile(self, request: Profile, limit_s: float) -> Profiled:
        """Of the one that has most to do."""
        busiest = max(self._engines, key=lambda engine: (engine.said is not None, self._load(engine)))
        return await busiest.profile(request, limit_s)

    def _by_cost(self, request: Submit) -> tuple[list[tuple[int, int]], list[bytes]]:
        """The engines that take work, the best first, and how much of the prompt each has seen; and the names of the
        prompt's pieces."""
        self._forget_the_dead()
        up = [index for index, engine in enumerate(self._engines) if engine.takes_work]
        names = list(pieces(request.prompt, request.salt)) if self._prefix_caching and len(up) > 1 else []
        seen = {index: self._seen[index].matched(names) for index in up}
        turn, count = self._turn, len(self._engines)
        self._turn += 1
        order = sorted(up, key=lambda i: (self._load(self._engines[i]) - seen[i], (i - turn) % count))
        return [(index, seen[index]) for index in order], names

    def _note(self, index: int, names: list[bytes]) -> None:
        """That this engine will have seen these pieces."""
        ready = self._engines[index].said
        if names and ready is not None:
            self._seen[index].note(names, ready.num_blocks * ready.block_size)

    def _forget_the_dead(self) -> None:
        """A new engine has seen nothing."""
        for index, engine in enumerate(self._engines):
            if engine.said is not self._lives[index]:
                self._lives[index] = engine.said
                self._seen[index].clear()

    def _load(self, engine: RoutedEngine) -> int:
        stats, others = engine.stats, 0
        if stats is not None and self._clock() - engine.stats_at <= STALE_S:
            others = max(0, stats.running + stats.waiting + stats.compiling - engine.num_open)
        return engine.unread_tokens + ANSWER_TOKENS * (engine.num_open + others)
