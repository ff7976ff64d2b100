"""Responses that run on when their request has been answered: a bounded number, counted by the drain, ended by it."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from dataclasses import dataclass

from gateway.answers.generation import Generation
from gateway.errors import ApiError
from gateway.http import faults
from gateway.http.exchange import Exchange, RunningOn
from gateway.http.stream import outcome, whole_answer
from gateway.responses.prepare import PreparedResponse
from gateway.responses.types import Response
from gateway.responses.wire import ResponsesWire
from gateway.services import Services
from gateway.timeline.laps import Laps

_log = logging.getLogger("headrace.responses")


@dataclass(slots=True, eq=False)
class Running:
    wire: ResponsesWire
    generation: Generation
    exchange: Exchange
    settled: bool = False  # its record is final, or gone: nothing is kept any more


class Background:
    """Used on the event loop alone."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._running: dict[str, Running] = {}
        self._num_of: Counter[str | None] = Counter()  # by key: started, and not ended
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, prepared: PreparedResponse, asker: Exchange) -> Response:
        """Returns when the engine has accepted it. Raises ApiError."""
        self._check_room(asker.key)
        self._num_of[asker.key] += 1
        try:
            running = await self._accepted(prepared, asker)
        except BaseException:
            self._num_of[asker.key] -= 1
            raise
        response = running.wire.queued()
        self._running[response.id] = running
        task = asyncio.create_task(self._run(response.id, running), name=response.id)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        asker.running_on = RunningOn(running.exchange, task)
        return response

    def _check_room(self, key: str | None) -> None:
        """Half is the most for one key, so that none keeps all the others out."""
        most = self._services.settings.max_background
        most_of_key = most if key is None else max(1, most // 2)
        for num_running, limit in ((self._num_of[key], most_of_key), (self._num_of.total(), most)):
            if num_running >= limit:
                raise faults.too_many_background(self._services, limit)

    async def _accepted(self, prepared: PreparedResponse, asker: Exchange) -> Running:
        laps = Laps(self._services.clock)
        exchange = Exchange(asker.request_id, asker.method, laps.began, "background", 200, key=asker.key, laps=laps)
        generation = Generation(self._services, prepared.prepared.job, exchange, None)
        try:
            await generation.start()
        except BaseException:
            generation.close()
            raise
        return Running(prepared.wire, generation, exchange)

    async def _run(self, response_id: str, running: Running) -> None:
        services, exchange = self._services, running.exchange
        forced = asyncio.create_task(services.drain.wait_forced())
        forced.add_done_callback(lambda task: None if task.cancelled() else self._must_stop(running))
        try:
            with services.drain.request():
                await self._answer(running)
        finally:
            forced.cancel()
            running.generation.close()
            self._running.pop(response_id, None)
            self._num_of[exchange.key] -= 1
            exchange.outcome = exchange.outcome or "error"
            exchange.end(services.metrics)

    async def _answer(self, running: Running) -> None:
        generation, wire, exchange = running.generation, running.wire, running.exchange
        try:
            await generation.mailbox.filled()
            if not running.settled:
                wire.started()
            await generation.finished()
            if not running.settled:
                await whole_answer(generation, wire, exchange.laps)
            exchange.outcome = exchange.outcome or outcome(generation)
        except ApiError as error:
            _fail(running, error)
        except Exception:
            _log.exception("request %s: its response failed", exchange.request_id)
            _fail(running, faults.internal(exchange.request_id))

    def _must_stop(self, running: Running) -> None:
        running.generation.stop("draining", faults.draining(self._services))

    def cancel(self, response_id: str) -> None:
        """Nothing, where it is not running any more."""
        running = self._running.get(response_id)
        if running is not None and not running.settled:
            running.wire.cancelled()
            self._end(running)

    def discard(self, response_id: str) -> None:
        """For one whose record is deleted."""
        running = self._running.get(response_id)
        if running is not None and not running.settled:
            self._end(running)

    def _end(self, running: Running) -> None:
        running.settled = True
        running.exchange.outcome = "cancelled"
        running.generation.stop("cancelled", faults.cancelled())


def _fail(running: Running, error: ApiError) -> None:
    running.exchange.fail(error)
    if not running.settled:
        running.wire.failed(error)
