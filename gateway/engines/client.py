"""An engine as the gateway sees it. One interface; a socket and the tests' FakeEngine implement it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
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
    num_requests: int  # that it had open
    from_outside: bool = False  # somebody else ended the process: as far as anybody can tell, no request's doing
    explained: asyncio.Event = field(default_factory=asyncio.Event)


class Sink(Protocol):
    """Where one request's outputs go. Called on the event loop; must not block or raise."""

    def deliver(self, output: Output) -> None:
        """New tokens of one sequence, or its end, or both."""

    def fail(self, death: Death) -> None:
        """The engine died: nothing more will come for any sequence that it had of this request. They may be submitted
        again, under the same ids."""


class EngineClient(Protocol):
    @property
    def ready(self) -> Ready | None:
        """What the engine said of itself; None while it is starting or dead."""

    @property
    def stats(self) -> EngineStats | None:
        """As of its last frame; None before the first."""

    def new_ids(self, count: int) -> list[int]:
        """Sequence ids never used before."""

    async def available(self) -> None:
        """Returns when some engine takes work, at once if one does."""

    async def submit(self, request: Submit, sink: Sink) -> None:
        """Returns when the engine has accepted; outputs then go to `sink` until every sequence has finished or was
        aborted. Raises scheduler.types.Rejected when the engine refuses, EngineUnavailable when there is none."""

    def abort(self, seq_ids: list[int]) -> None:
        """At once and idempotent: sinks hear no more of these; the engine frees their blocks within a step. Also right
        while submit() still waits for its answer."""

    def watch(self, for_s: float, told: Callable[[Snapshot], None]) -> None:
        """Asks for snapshots, for so long from now; each goes to `told`, as the last call named it. Nothing, where
        there is no engine."""
