"""Gateways that want to see how things stand, for as long as they said. Where none does, a turn of the loop pays for
one comparison."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from engine.server import CONNECTION_SHIFT, SEQ_MASK
from scheduler.protocol import Snapshot

INTERVAL_S = 0.5  # between two snapshots, whoever looks
MAX_WATCH_S = 60.0


class Outlet(Protocol):
    def send(self, connection: int, message: Snapshot) -> None: ...


class Watchers:
    def __init__(self, outlet: Outlet, clock: Callable[[], float]) -> None:
        self._outlet = outlet
        self._clock = clock
        self._until: dict[int, float] = {}  # by connection
        self._next = 0.0  # when the next snapshot is due

    def add(self, connection: int, for_s: float) -> None:
        self._until[connection] = self._clock() + min(max(for_s, 0.0), MAX_WATCH_S)

    def remove(self, connection: int) -> None:
        self._until.pop(connection, None)

    def show(self, look: Callable[[], Snapshot]) -> None:
        """Sends a snapshot to each, if one is due."""
        if not self._until:
            return
        now = self._clock()
        if now < self._next:
            return
        self._until = {connection: until for connection, until in self._until.items() if now <= until}
        if not self._until:
            return
        self._next = now + INTERVAL_S
        snapshot = look()
        for connection in self._until:
            self._outlet.send(connection, seen_by(connection, snapshot))

    def patience_s(self, otherwise: float) -> float:
        """How long the loop may sleep where nothing else happens."""
        return min(otherwise, max(0.0, self._next - self._clock())) if self._until else otherwise


def seen_by(connection: int, snapshot: Snapshot) -> Snapshot:
    """With the ids that this gateway gave; it knows no others."""

    def own(seq_id: int | None) -> int | None:
        is_own = seq_id is not None and seq_id >> CONNECTION_SHIFT == connection
        return seq_id & SEQ_MASK if is_own and seq_id is not None else None

    replace = msgspec.structs.replace
    return replace(
        snapshot,
        rows=[replace(row, seq_id=own(row.seq_id)) for row in snapshot.rows],
        queue=[replace(queued, seq_id=own(queued.seq_id)) for queued in snapshot.queue],
    )
