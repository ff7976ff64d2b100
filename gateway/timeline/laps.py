"""One request's wall time, cut where it happens: at every moment some cause is charged, so the causes sum to the whole.

The time in the engine is one lap; its own cut is asked for when somebody looks (gateway.timeline.engine_time).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from types import MappingProxyType, TracebackType
from typing import Literal

Cause = Literal[
    "event_loop",  # its bytes had come, and the gateway was busy with others
    "accept",  # routes, middleware, and whatever has no name of its own
    "rate_limit",  # keys and limits
    "turn",  # a burst of requests is let in over several turns of the event loop
    "receive",  # the body, from the client
    "worker",  # waiting for one of the few threads that prepare long prompts
    "prepare",  # checking, and making a job of it
    "parse",  # the body's JSON
    "template",  # the chat template
    "tokenize",
    "grammar",  # checking, and compiling in the engine, what the answer is held to
    "waiting_step",  # in the engine's queue: for the end of the running step, and for those before it in line
    "waiting_rows",  # for a row of the batch
    "waiting_blocks",  # for KV blocks
    "waiting_fairness",  # another tenant's was let in in its turn
    "waiting_choice",  # for the first choice to compute the prompt
    "prefill",  # its own prompt
    "others_prefill",  # prompts of others in its steps
    "decode",
    "preemption",  # gone from the batch, and computing again what was lost
    "migration",  # its engine died: until another one has gone on with it
    "engine",  # in the engine, as long as it is not cut further
    "slow_reader",  # from the last token to the last byte that the client took
]
ORDER: tuple[Cause, ...] = Cause.__args__  # type: ignore[attr-defined]
FIRST_TOKEN = "first_token"  # an event
Cut = Callable[[float], Mapping[Cause, float]]  # of the seconds of the engine's lap


class Laps:
    """Used by one request; read by any thread."""

    __slots__ = ("_cause", "_clock", "_cut", "_ended", "_final", "_since", "_spent", "began", "events")

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        began: float | None = None,
        before: Mapping[Cause, float] = MappingProxyType({}),
    ) -> None:
        """began: by that clock; now, if it is not given. before: seconds since then that are accounted for."""
        self._clock = clock
        self.began = clock() if began is None else began
        self._since = self.began + sum(before.values())
        self._cause: Cause = "accept"
        self._spent: dict[Cause, float] = dict(before)
        self._cut: Cut | None = None
        self._ended: float | None = None
        self._final: dict[Cause, float] = {}  # once it has ended
        self.events: list[tuple[float, str]] = []  # seconds after the beginning; few: one for each first time

    @property
    def cause(self) -> Cause:
        return self._cause

    def enter(self, cause: Cause) -> Cause:
        """From now on this is what takes time. Returns what did before."""
        now, before = self._clock(), self._cause
        self._spent[before] = self._spent.get(before, 0.0) + now - self._since
        self._cause, self._since = cause, now
        if cause not in self._spent:
            self._spent[cause] = 0.0
            self.note(cause, now)
        return before

    def end(self, at: float | None = None) -> float:
        """Nothing takes time any more, since `at` or now. Returns the seconds since the beginning."""
        if self._ended is None:
            ended = self._clock() if at is None else max(at, self._since)
            self._final = self._at(ended)
            self._ended, self._cut = ended, None
        return self._ended - self.began

    def note(self, name: str, at: float | None = None) -> None:
        self.events.append(((self._clock() if at is None else at) - self.began, name))

    def enter_engine(self, cut: Cut) -> None:
        self._cut = cut
        self.enter("engine")

    def so_far(self) -> dict[Cause, float]:
        """Seconds by cause. They sum to the time since the beginning."""
        return self._at(self._clock()) if self._ended is None else self._final

    def _at(self, now: float) -> dict[Cause, float]:
        spent = dict(self._spent)
        spent[self._cause] = spent.get(self._cause, 0.0) + now - self._since
        in_engine = spent.pop("engine", 0.0)
        for cause, seconds in (self._cut(in_engine) if self._cut is not None else {}).items():
            spent[cause] = spent.get(cause, 0.0) + seconds
        return {cause: spent[cause] for cause in ORDER if spent.get(cause)}


_current: ContextVar[Laps | None] = ContextVar("laps", default=None)


class timed_by:
    """While it is held, `lap` means this request's."""

    def __init__(self, laps: Laps) -> None:
        self._laps = laps

    def __enter__(self) -> None:
        self._token = _current.set(self._laps)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _current.reset(self._token)


class lap:
    """What is done while it is held takes time for this cause, and then again for the one around it. Outside of a
    request nothing is charged."""

    __slots__ = ("_before", "_cause", "_laps")

    def __init__(self, cause: Cause) -> None:
        self._cause: Cause = cause

    def __enter__(self) -> None:
        self._laps = _current.get()
        if self._laps is not None:
            self._before = self._laps.enter(self._cause)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._laps is not None:
            self._laps.enter(self._before)


def current_laps() -> Laps | None:
    return _current.get()
