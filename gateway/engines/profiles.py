"""Profiles of the engine's steps: one at a time, through a file that lives only as long as somebody reads it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, Protocol

from scheduler.protocol import Profile, Profiled

MAX_STEPS = 200
MAX_TIMEOUT_S = 600.0
MAX_TRACE_BYTES = 256 << 20  # compressed
WRITE_S = 120.0  # for the step that runs when the time is up, and for the file


class NoProfile(Exception):
    """Why there is none, as the engine tells it; or late: it has said nothing."""

    def __init__(self, outcome: Literal["nothing", "busy", "off", "too_large", "failed", "late"], message: str) -> None:
        super().__init__(message)
        self.outcome = outcome
        self.message = message


class ProfilingEngine(Protocol):
    def new_ids(self, count: int) -> list[int]:
        """Never used before."""

    async def profile(self, request: Profile, limit_s: float) -> Profiled:
        """If this is cancelled or lasts longer, the engine drops it. Raises TimeoutError, EngineUnavailable."""


@dataclass(frozen=True, slots=True)
class Trace:
    """gzip of Chrome trace JSON."""

    file: BinaryIO
    num_bytes: int
    num_steps: int


class Profiler:
    def __init__(self, engine: ProfilingEngine, folder: Path) -> None:
        self._engine = engine
        self._folder = folder
        self._busy = False

    @asynccontextmanager
    async def trace(self, steps: int, timeout_s: float) -> AsyncIterator[Trace]:
        """Of the next steps, or of as many as there are in that time. No name in the file system leads to it any more.
        Raises NoProfile, EngineUnavailable."""
        if self._busy:
            raise NoProfile("busy", "")
        self._busy = True
        try:
            trace = await self._taken(steps, timeout_s)
            with trace.file:
                yield trace
        finally:
            self._busy = False

    async def _taken(self, steps: int, timeout_s: float) -> Trace:
        folder = Path(tempfile.mkdtemp(prefix="profile-", dir=self._folder))
        try:
            path = folder / "trace.json.gz"
            asked = Profile(self._engine.new_ids(1)[0], steps, timeout_s, str(path), MAX_TRACE_BYTES)
            answer = await self._engine.profile(asked, timeout_s + WRITE_S)
            if answer.outcome != "done":
                raise NoProfile(answer.outcome, answer.message)
            return Trace(path.open("rb"), answer.num_bytes, answer.num_steps)
        except TimeoutError:
            raise NoProfile("late", "") from None
        except OSError as error:
            raise NoProfile("failed", f"the trace cannot be read: {error.strerror}") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)
