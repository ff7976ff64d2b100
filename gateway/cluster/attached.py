"""Engines that another gateway keeps running, found by its server's name."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import msgspec

from gateway.cluster.messages import Known, Life
from gateway.cluster.registry import WAIT_S, ask_known, find
from gateway.cluster.session import FAILURES, last_line
from gateway.engines import tls
from gateway.engines.handles import EngineHandle, Streams
from gateway.engines.socket import EngineFailed
from gateway.errors import ServerReplaced
from scheduler.protocol import Tcp

LAST_WORDS_S = 8.0  # as long as the first gateway may take to find out
ANSWER_S = 5.0  # beyond what a question may take

log = logging.getLogger("headrace.cluster")


class AttachLauncher:
    """An EngineLauncher of one replica, which starts nothing: it waits until the first gateway has."""

    def __init__(self, name: str, replica: int, known: Known) -> None:
        self._name = name
        self._replica = replica
        self._known = known
        self._registry: Any = None
        self._last = 0  # number of the life that we have seen

    async def start(self, socket: Path) -> EngineHandle:
        if self._registry is None:
            await self._find()
        try:
            while (told := await self._ask()) is None:
                log.debug("replica %d is not there yet", self._replica)
        except FAILURES as error:
            self._registry = None
            raise EngineFailed("lost", f"the server named {self._name} is gone: {last_line(error)}") from error
        life = msgspec.json.decode(told, type=Life)
        self._last = life.number
        tcp = Tcp(life.host, life.port, self._known.credentials)
        return AttachedEngine(self._registry, self._replica, life.number, tcp)

    async def _find(self) -> None:
        """Of a server that was started anew, all is new: certificates too. Raises EngineFailed, or ServerReplaced."""
        self._registry = await asyncio.to_thread(find, self._name)
        known = await asyncio.to_thread(ask_known, self._name)
        if (known.model, known.replicas) != (self._known.model, self._known.replicas):
            raise ServerReplaced(
                f"the server named {self._name} has another model or number of replicas now: start this gateway again"
            )
        self._known, self._last = known, 0

    async def _ask(self) -> bytes | None:
        async with asyncio.timeout(WAIT_S + ANSWER_S):
            # the same once more, if it has not ended: then only our connection broke
            answer: bytes | None = await self._registry.next_life.remote(self._replica, self._last - 1)
        return answer


class AttachedEngine:
    """An EngineHandle, of somebody else's engine: it is never stopped from here."""

    def __init__(self, registry: Any, replica: int, number: int, tcp: Tcp) -> None:
        self._registry = registry
        self._replica = replica
        self._number = number
        self._tcp = tcp
        self._killed = True  # where the first gateway is gone too

    pid: int | None = None  # it is another machine's

    async def connect(self) -> Streams:
        return await tls.reach(self._tcp)

    def lead_to(self, path: Path) -> None:
        tls.lead_to(self._tcp, path)

    @property
    def was_killed(self) -> bool:
        return self._killed

    async def last_words(self) -> str | None:
        try:
            async with asyncio.timeout(LAST_WORDS_S + ANSWER_S):
                told = await self._registry.end_of.remote(self._replica, self._number, LAST_WORDS_S)
        except FAILURES:
            return "the engine is gone, and so is the gateway that kept it"
        life = None if told is None else msgspec.json.decode(told, type=Life)
        if life is None or life.ended is None:
            return None
        self._killed = life.ended.was_killed
        return life.ended.words

    async def stop(self) -> None:
        """It is not ours."""

    def kill(self) -> None:
        """Neither."""
