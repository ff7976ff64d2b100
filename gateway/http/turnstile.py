"""How many new requests begin in one turn of the event loop, so that a burst of them leaves running streams theirs.

To read, check and tokenise a request takes the gateway as long as some twenty events of streams. Without a bound, all
of a burst would be done before the next token of anybody: docs/log.md.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

LEAST = 8  # that pass in a turn
SHARE = 4  # streams for which one more may pass


class Turnstile:
    """Used on one event loop. Every wait ends: the loop turns while anything is to do, and each turn lets some pass."""

    def __init__(self) -> None:
        self.num_streams = 0  # being sent
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._passed = 0  # in this turn
        self._is_turning = False  # the next turn will look who waits

    @contextmanager
    def stream(self) -> Iterator[None]:
        self.num_streams += 1
        try:
            yield
        finally:
            self.num_streams -= 1

    async def enter(self) -> None:
        """Returns in the order of coming."""
        self._turn_soon()
        if not self._waiting and self._passed < self._width():
            self._passed += 1
            return
        place = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        await place

    def _width(self) -> int:
        return max(LEAST, self.num_streams // SHARE)

    def _turn_soon(self) -> None:
        if not self._is_turning:
            self._is_turning = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._is_turning, self._passed = False, 0
        while self._waiting and self._passed < self._width():
            place = self._waiting.popleft()
            if not place.done():  # or else whoever waited was cancelled
                place.set_result(None)
                self._passed += 1
        if self._passed or self._waiting:
            self._turn_soon()
