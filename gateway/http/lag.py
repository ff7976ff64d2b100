"""How late the event loop is: what holds it up holds up every stream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

EVERY_S = 0.25


async def watch_lag(
    tell: Callable[[float], None], clock: Callable[[], float] = time.monotonic, every_s: float = EVERY_S
) -> None:
    """Tells seconds, until it is cancelled."""
    while True:
        due = clock() + every_s
        await asyncio.sleep(every_s)
        tell(max(0.0, clock() - due))
