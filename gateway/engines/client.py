"""Engines as the gateway sees them. One interface; a socket, a router over several and the tests' FakeEngine
implement it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from typing import Protocol

from scheduler.protocol import EngineStats, Output, Ready, Snapshot, Submit


class EngineUnavailable(Exception):
    """No engine takes work now (starting, dead, restarting). Answered with 503 and Retry-After."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s


@dataclass(slots=True, eq=False)
class Death:
    """Of an engine. The last two are known a moment after its sinks were told, and then `explained` is set."""

    message: str
    num_requests: int  # that it had open; of other gateways, as it counted last, each choice is one
    from_outside: bool = False  # somebody else ended the process: as far as anybody can tell, no request's doing
    explained: asyncio.Event = field(default_factory=asyncio.Event)
    planned: bool = False  # the engine lives, and is emptied: no request's doing, and none of its tries

    @classmethod
    def by_plan(cls, message: str) -> Death:
        death = cls(message, 0, from_outside=True, planned=True)
        death.explained.set()
        return death


class Sink(Protocol):
    """Where one request's outputs go. Called on the event loop; must not block or raise."""

    def deliver(self, output: Output) -> None:
        """New tokens of one sequence, or its end, or both."""

    def fail(self, death: Death, seq_ids: Set[int]) -> None:
        """An engine died: nothing more will come for these, which are all that it had of this request. They may be
        submitted again, under the same ids. Called once a death."""


class Replica(Protocol):
    """One engine, for who looks on."""

    @property
    def said(self) -> Ready | None:
        """What the engine said of itself; None while it is starting or dead."""

    @property
    def is_draining(self) -> bool:
        """It is given no new work, whether it runs or not."""

    @property
    def stats(self) -> EngineStats | None:
        """As of its last frame; None before the first."""

    @property
    def num_open(self) -> int:
        """Sequences that this gateway has submitted to it and that have not ended."""

    def watch(self, for_s: float, told: Callable[[Snapshot], None]) -> None:
        """Asks for snapshots, for so long from now; each goes to `told`, as the last call named it. Nothing, where
        there is no engine."""


class EngineClient(Protocol):
    """One engine, or several that are as one."""

    @property
    def ready(self) -> Ready | None:
        """What holds wherever work goes; None while nothing takes any, unless that is a pause."""

    @property
    def is_paused(self) -> bool:
        """By plan nothing takes work now, and something will in a moment: whoever comes meanwhile may wait for it."""

    @property
    def replicas(self) -> Sequence[Replica]:
        """Always as many, in the same order."""

    def replica_of(self, seq_id: int) -> int:
        """The number of the engine that has this sequence; 0, where it has ended."""

    def stats_of(self, seq_id: int) -> EngineStats | None:
        """Of the engine that has this sequence, also while its sink is told of its end; None: it has said nothing."""

    def new_ids(self, count: int) -> list[int]:
        """Sequence ids never used before."""

    async def available(self) -> None:
        """Returns when an engine takes work, at once if one does."""

    async def submit(self, request: Submit, sink: Sink) -> None:
        """Returns when the engine has accepted; outputs then go to `sink` until every sequence has finished or was
        aborted. Raises scheduler.types.Rejected when the engine refuses, EngineUnavailable when there is none."""

    def abort(self, seq_ids: list[int]) -> None:
        """At once and idempotent: sinks hear no more of these; the engine frees their blocks within a step. Also right
        while submit() still waits for its answer."""
