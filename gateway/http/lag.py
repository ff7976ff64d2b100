"""How late the event loop is: what holds it up holds up every stream."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

EVERY_S = 0.25


async def watch_lag(tell: Callable[[float], None]) -> None:
    """Tells seconds, until it is cancelled."""
    clock = asyncio.get_running_loop().time
    while True:
        due = clock() + EVERY_S
        await asyncio.sleep(EVERY_S)
        tell(max(0.0, clock() - due))
