"""Engines on the nodes of a Ray cluster: each start takes a place of its own, wherever there is one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import ray.exceptions

from gateway.cluster.messages import Answer, Ended, Fetched, Order, Refused, Started
from gateway.cluster.places import Place, Places
from gateway.cluster.session import FAILURES, last_line
from gateway.engines import tls
from gateway.engines.handles import EngineHandle, Streams
from gateway.engines.socket import EngineFailed
from scheduler.protocol import Credentials, Tcp

FETCH_S = 3600.0  # for a model that its node has yet to get from the hub
START_S = 600.0
ANSWER_S = 2.0  # of a host
LAST_WORDS_S = 5.0  # until the process of an engine that has closed its connection has ended
STOP_S = 12.0  # EngineProcess.stop takes ten

log = logging.getLogger("headrace.cluster")
_answer = msgspec.json.Decoder(Answer)


class RayLauncher:
    """An EngineLauncher of one replica."""

    def __init__(
        self,
        replica: int,
        order: Order,
        places: Places,
        gateway: Credentials,
        registry: Any,
        lives: Iterator[int],
    ) -> None:
        """places: the same of all replicas. gateway: with which engines let us in. registry: a Registry's handle.
        lives: numbers for runs, each larger than the one before."""
        self.replica = replica
        self._order = msgspec.json.encode(order)
        self._places = places
        self._credentials = gateway
        self._registry = registry
        self._lives = lives
        self.engine: RayEngine | None = None  # that was started last

    async def start(self, socket: Path) -> EngineHandle:
        place = await self._places.take(self.replica)
        try:
            started = await self._start(place)
        except BaseException:
            await place.leave()
            raise
        tcp = Tcp(started.host, started.port, self._credentials)
        log.info("replica %d is at %s:%d", self.replica, started.host, started.port)
        life = _Life(self._registry, self.replica, next(self._lives))
        self.engine = RayEngine(place, tcp, started.node_id, life)
        return self.engine

    async def _start(self, place: Place) -> Started:
        await self._ask(place.host.fetch, FETCH_S, "have its model")
        answer = await self._ask(place.host.start, START_S, "start")
        assert isinstance(answer, Started)
        return answer

    async def _ask(self, what: Any, seconds: float, words: str) -> Fetched | Started:
        """what: a method of the host. Raises EngineFailed."""
        try:
            async with asyncio.timeout(seconds):
                answer: Answer = _answer.decode(await what.remote(self._order))
        except TimeoutError:
            raise EngineFailed("lost", f"the engine did not {words} within {seconds:g} s") from None
        except FAILURES as error:
            raise EngineFailed("lost", f"the engine's host failed: {last_line(error)}") from error
        if isinstance(answer, Refused):
            raise EngineFailed(answer.kind, answer.message)
        return answer


@dataclass(frozen=True, slots=True)
class _Life:
    """What other gateways are told of a run."""

    registry: Any
    replica: int
    number: int

    def begin(self, tcp: Tcp) -> None:
        self.registry.lives.remote(self.replica, self.number, tcp.host, tcp.port)

    def end(self, ended: Ended) -> None:
        self.registry.ended.remote(self.replica, self.number, msgspec.json.encode(ended))


class RayEngine:
    """An EngineHandle."""

    def __init__(self, place: Place, tcp: Tcp, node_id: str, life: _Life) -> None:
        self.node_id = node_id
        self._place = place
        self._tcp = tcp
        self._life = life
        self._is_ours = False  # its end
        self._is_leaving = False
        self._is_silent = False  # its host says nothing, though the engine is gone: the whole node may be
        self._ended: Ended | None = None
        self._running = asyncio.create_task(self._run(), name="engine's host")

    async def _run(self) -> None:
        try:
            self._ended = msgspec.json.decode(await self._place.host.run.remote(), type=Ended)
        except ray.exceptions.RayError as error:
            self._ended = Ended(f"the engine's host at {self._tcp.host} is gone: {last_line(error)}", True)

    pid: int | None = None  # it is another machine's

    async def connect(self) -> Streams:
        return await tls.reach(self._tcp)

    def lead_to(self, path: Path) -> None:
        tls.lead_to(self._tcp, path)
        self._life.begin(self._tcp)

    @property
    def was_killed(self) -> bool:
        if self._is_ours or self._is_leaving:
            return self._is_leaving
        return self._is_silent if self._ended is None else self._ended.was_killed

    async def last_words(self) -> str | None:
        """A host that answers will tell how its engine ended; one that does not has gone with its node, which Ray
        itself finds out much later."""
        answer = asyncio.ensure_future(self._place.host.lives.remote())
        first: set[asyncio.Future[Any]] = {self._running, answer}
        await asyncio.wait(first, timeout=ANSWER_S, return_when=asyncio.FIRST_COMPLETED)
        lives = answer.done() and answer.exception() is None
        answer.cancel()
        if lives:
            await asyncio.wait({self._running}, timeout=LAST_WORDS_S)
        if self._ended is not None:
            return self._ended.words
        if lives:
            return None
        self._is_silent = True
        return f"the engine at {self._tcp.host} is gone, and nothing is heard of its host"

    def leave(self) -> bool:
        """Its node is to be removed: what it does goes on elsewhere. False: it goes already."""
        if self._is_leaving or self._place.host is None:
            return False
        self._is_leaving = True
        self._place.host.kill.remote()
        return True

    async def stop(self) -> None:
        try:
            self._life.end(Ended(self._ended.words if self._ended else "the engine was stopped", self.was_killed))
            if self._ended is None and not self._is_silent:
                self._is_ours = True
                async with asyncio.timeout(STOP_S):
                    await self._place.host.stop.remote()
        except FAILURES as error:
            log.warning("the engine at %s was not stopped: %s", self._tcp.host, last_line(error))
        finally:
            self._running.cancel()
            await self._place.leave()

    def kill(self) -> None:
        if self._place.host is not None:
            self._is_ours = True
            self._place.host.kill.remote()
