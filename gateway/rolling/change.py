"""One thing that an operator has asked for: what was done so far, for whoever looks on. They may leave; it goes on."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from typing import Literal

from gateway.rolling.types import Kind, Line, Phase

log = logging.getLogger("headrace.rolling")

RefusalCode = Literal["change_under_way", "engine_not_found", "last_engine", "reload_refused", "wrong_state"]


class Refused(Exception):
    """Nothing was changed. One sentence."""

    def __init__(self, code: RefusalCode, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param


class ChangeFailed(Exception):
    """Something was changed, and the rest is left as it was. One sentence."""


class Change:
    def __init__(self, kind: Kind, clock: Callable[[], float] = time.monotonic) -> None:
        self.kind = kind
        self.refusal: Refused | None = None
        self.has_begun = False  # something is being changed: it cannot be refused any more
        self._clock = clock
        self._began = clock()
        self._lines: list[Line] = []  # few for each engine
        self._more = asyncio.Event()  # another one for each line

    @property
    def last(self) -> Line:
        return self._lines[-1]

    @property
    def is_over(self) -> bool:
        return self.refusal is not None or (bool(self._lines) and self.last.phase in ("done", "failed"))

    def say(self, phase: Phase, message: str, engine: int | None = None) -> None:
        log.log(logging.ERROR if phase in ("failed", "failed_start") else logging.INFO, "%s: %s", self.kind, message)
        self._lines.append(Line(phase, message, engine, round(self._clock() - self._began, 3)))
        self.note()

    def begin(self) -> None:
        self.has_begun = True
        self.note()

    def refuse(self, refusal: Refused) -> None:
        log.warning("%s refused: %s", self.kind, refusal.message)
        self.refusal = refusal
        self.note()

    def note(self) -> None:
        self._more.set()
        self._more = asyncio.Event()

    async def begun(self, within_s: float) -> None:
        """Returns when it can be told whether it is refused; or after so long, for that may take long. Raises
        Refused."""
        try:
            async with asyncio.timeout(within_s):
                while not self.has_begun and not self.is_over:
                    await self._more.wait()
        except TimeoutError:
            pass
        if self.refusal is not None:
            raise self.refusal

    async def lines(self, ping_s: float) -> AsyncGenerator[Line]:
        """From the first to the last; in between, where nothing happens for so long, one that says so."""
        told = 0
        while True:
            while told < len(self._lines):
                told += 1
                yield self._lines[told - 1]
            if self.is_over:
                if self.refusal is not None:
                    yield self._line("failed", self.refusal.message)
                return
            try:
                async with asyncio.timeout(ping_s):
                    await self._more.wait()
            except TimeoutError:
                yield self._line("waiting", self.last.message)

    def _line(self, phase: Phase, message: str) -> Line:
        return Line(phase, message, None, round(self._clock() - self._began, 3))
