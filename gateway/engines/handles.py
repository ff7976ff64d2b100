"""The seam between who keeps an engine running and who can start one, on this machine or on another."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Protocol

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class EngineHandle(Protocol):
    """One run of an engine's program. All may be called in any state of it, also after its end."""

    @property
    def was_killed(self) -> bool:
        """By nothing that it did itself, nor by us. Known after `last_words` or `stop`."""

    @property
    def pid(self) -> int | None:
        """Of its process; None: it is on another machine."""

    async def connect(self) -> Streams:
        """As soon as it listens. Raises EngineFailed if it ends first, or if nothing comes for too long."""

    def lead_to(self, path: Path) -> None:
        """From now on `open_engine` of this path connects to it, in other processes of this machine too."""

    async def last_words(self) -> str | None:
        """How it ended, for people, in bounded time. None: it runs, as far as anybody can tell."""

    async def stop(self) -> None:
        """Asks, waits, then forces, and lets go of what it held. In bounded time."""

    def kill(self) -> None:
        """At once, its own children too. Does not wait."""


class EngineLauncher(Protocol):
    """What starts the engine of one replica, each time anew."""

    async def start(self, socket: Path) -> EngineHandle:
        """socket: a path of its own that it may listen at, where it is on this machine. Raises EngineFailed, after
        which another start may do better; any other error ends the server."""
