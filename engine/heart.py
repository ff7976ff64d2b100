"""What the step loop is at and since when, for a thread that tells it while a step runs. So a gateway can tell a long
step from a process that stands still, and a step that hangs from both."""

from __future__ import annotations

import time
from collections.abc import Callable

from scheduler.protocol import Pulse


class Heart:
    """`beat` is the step loop's, `pulse` for any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._at: tuple[float, float | None] | None = None  # since when, and how long it should take

    def beat(self, predicted_s: float | None = None) -> None:
        """Something new is begun."""
        self._at = self._clock(), predicted_s

    def pulse(self) -> Pulse | None:
        """None: before the first beat."""
        at = self._at
        return None if at is None else Pulse(self._clock() - at[0], at[1])
