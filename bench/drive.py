"""Sends the requests of one level, in a closed loop or each at its moment, and waits for all answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass, field

from bench.answers import Seen, read
from bench.arrivals import Closed, Load
from bench.client import Answer, Client
from bench.measure import Round
from bench.workload import Ask

MAX_HELD = 256 << 20  # bytes of answers that wait to be read until the clock has stopped
MAX_OPEN = 20_000  # requests at a time


@dataclass(slots=True)
class _Tally:
    """What came. Answers are read when all have ended, or where they get too many."""

    begun: int = 0
    ended: int = 0
    held_bytes: int = 0
    answers: list[Answer] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)

    def add(self, answer: Answer) -> None:
        self.ended += 1
        self.held_bytes += len(answer.body)
        if self.held_bytes > MAX_HELD:
            self.seen.append(read(answer))
        else:
            self.answers.append(answer)

    @property
    def num_open(self) -> int:
        return self.begun - self.ended

    def all_seen(self) -> list[Seen]:
        return self.seen + [read(answer) for answer in self.answers]


class Driver:
    """Of one server. `stop` ends a level early: what was answered until then counts."""

    def __init__(self, client: Client, path: str, stop: asyncio.Event) -> None:
        self._client, self._path, self._stop = client, path, stop

    async def run(self, load: Load, asks: Iterable[Ask]) -> Round:
        tally, pending = _Tally(), iter(asks)  # which all streams share
        work = self._closed(load, pending, tally) if isinstance(load, Closed) else self._open(pending, tally)
        began, cpu_s = time.perf_counter(), time.process_time()
        await self._until_stopped(work)
        wall_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu_s
        return Round(tally.all_seen(), wall_s, cpu_s, tally.num_open)

    async def _until_stopped(self, work: Coroutine[None, None, None]) -> None:
        working, stopped = asyncio.create_task(work), asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({working, stopped}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            working.cancel()
            stopped.cancel()
            outcomes = await asyncio.gather(working, stopped, return_exceptions=True)
        if isinstance(outcomes[0], Exception):
            raise outcomes[0]

    async def _closed(self, load: Closed, asks: Iterable[Ask], tally: _Tally) -> None:
        async def stream() -> None:
            for ask in asks:
                tally.begun += 1
                await self._ask(ask, tally)

        async with asyncio.TaskGroup() as streams:
            for _ in range(load.concurrency):
                streams.create_task(stream())

    async def _open(self, asks: Iterable[Ask], tally: _Tally) -> None:
        began = time.perf_counter()
        async with asyncio.TaskGroup() as requests:
            for ask in asks:
                due = began + ask.at_s
                while (wait_s := due - time.perf_counter()) > 0:
                    await asyncio.sleep(wait_s)
                tally.begun += 1
                if tally.num_open > MAX_OPEN:
                    tally.add(Answer(failure=f"not sent: {MAX_OPEN:,} requests were open"))
                    await asyncio.sleep(0)  # answers may come meanwhile
                else:
                    requests.create_task(self._ask(ask, tally, due))

    async def _ask(self, ask: Ask, tally: _Tally, due_s: float | None = None) -> None:
        answer = await self._client.ask("POST", self._path, ask.body, ask.output_len)
        answer.late_s = answer.sent_s - due_s if due_s is not None else 0.0
        tally.add(answer)
