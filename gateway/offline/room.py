"""How much of a program's work the engine has at a time: no more than its queue takes, so nothing is refused."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class _Place:
    num_seqs: int
    num_tokens: int
    admitted: asyncio.Future[None]


class Room:
    """Used on one event loop. Who comes first enters first; whoever is alone may be larger than the room."""

    def __init__(self, max_seqs: int, max_tokens: int) -> None:
        self.max_seqs = max_seqs
        self._max_tokens = max_tokens
        self._num_seqs = 0
        self._num_tokens = 0
        self._num_inside = 0
        self._waiting: deque[_Place] = deque()
        self._left = asyncio.Event()

    @property
    def num_inside(self) -> int:
        return self._num_inside

    @asynccontextmanager
    async def held(self, num_seqs: int, num_tokens: int) -> AsyncIterator[None]:
        place = _Place(num_seqs, num_tokens, asyncio.get_running_loop().create_future())
        self._waiting.append(place)
        self._admit()
        try:
            await place.admitted
            yield
        finally:
            self._leave(place)

    async def change(self, within_s: float) -> None:
        """Waits until somebody leaves, or for so long."""
        self._left.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._left.wait()

    def _admit(self) -> None:
        while self._waiting and self._fits(self._waiting[0]):
            place = self._waiting.popleft()
            if not place.admitted.cancelled():  # or else it leaves in a moment, without having been here
                self._num_inside += 1
                self._num_seqs += place.num_seqs
                self._num_tokens += place.num_tokens
                place.admitted.set_result(None)

    def _fits(self, place: _Place) -> bool:
        return self._num_inside == 0 or (
            self._num_seqs + place.num_seqs <= self.max_seqs and self._num_tokens + place.num_tokens <= self._max_tokens
        )

    def _leave(self, place: _Place) -> None:
        if not place.admitted.done() or place.admitted.cancelled():
            with suppress(ValueError):
                self._waiting.remove(place)
        else:
            self._num_inside -= 1
            self._num_seqs -= place.num_seqs
            self._num_tokens -= place.num_tokens
            self._left.set()
        self._admit()
