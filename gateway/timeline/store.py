"""The timelines of requests under way and of the last that ended, a bounded number."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Protocol

import msgspec

from gateway.timeline.laps import FIRST_TOKEN, Cause, Laps

MAX_EVENTS = 64


class Spent(msgspec.Struct, frozen=True):
    cause: Cause
    ms: float


class Timings(msgspec.Struct, frozen=True):
    """What the last chunk of an answer tells, or a whole answer, where it is asked for. The causes sum to total_ms."""

    total_ms: float
    ttft_ms: float | None
    causes: list[Spent]


class TimelineEvent(msgspec.Struct, frozen=True):
    at_ms: float
    name: str


class Timeline(msgspec.Struct, frozen=True):
    """The causes sum to total_ms."""

    id: str
    endpoint: str
    outcome: str | None  # None: it is under way
    status: int
    started: float  # seconds since 1970
    total_ms: float
    ttft_ms: float | None
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    causes: list[Spent]
    events: list[TimelineEvent]


class Timed(Protocol):
    """What is told of a request beside its laps."""

    request_id: str
    endpoint: str
    outcome: str
    status: int
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    ttft_s: float | None
    key: str | None
    laps: Laps


class TimelineSink(Protocol):
    """Whoever else wants the timelines of requests that have ended."""

    def add(self, timeline: Timeline, trace_headers: Mapping[str, str]) -> None:
        """trace_headers: traceparent and tracestate, as far as the client sent them. Must not block or raise."""


def causes_of(laps: Laps) -> list[Spent]:
    return [Spent(cause, _ms(seconds)) for cause, seconds in laps.so_far().items()]


def timings_of(laps: Laps) -> Timings:
    causes = causes_of(laps)
    first = next((_ms(at) for at, name in laps.events if name == FIRST_TOKEN), None)
    return Timings(round(sum(spent.ms for spent in causes), 3), first, causes)


def timeline_of(request: Timed, now: float, *, ended: bool) -> Timeline:
    """now: seconds since 1970."""
    causes = causes_of(request.laps)
    total_ms = sum(spent.ms for spent in causes)
    return Timeline(
        request.request_id,
        request.endpoint,
        request.outcome if ended else None,
        request.status,
        round(now - total_ms / 1000, 3),
        round(total_ms, 3),
        None if request.ttft_s is None else _ms(request.ttft_s),
        request.prompt_tokens,
        request.cached_tokens,
        request.generated_tokens,
        causes,
        [TimelineEvent(_ms(at), name) for at, name in request.laps.events[:MAX_EVENTS]],
    )


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


class Timelines:
    """By request id; of several requests with one id, the last. Used on the event loop."""

    def __init__(self, most: int = 1024) -> None:
        """most: of those that ended; 0: nothing is kept."""
        self._most = most
        self._open: dict[str, Timed] = {}
        self._ended: OrderedDict[str, tuple[Timed, float]] = OrderedDict()  # and when, in seconds since 1970

    def open(self, request: Timed) -> None:
        self._open[request.request_id] = request

    def close(self, request: Timed, now: float) -> bool:
        """False, where it was not opened, or where another has its id since."""
        if self._open.get(request.request_id) is not request:
            return False
        del self._open[request.request_id]
        self._ended[request.request_id] = (request, now)
        self._ended.move_to_end(request.request_id)
        if len(self._ended) > self._most:
            self._ended.popitem(last=False)
        return True

    def find(self, request_id: str, key: str | None, now: float) -> Timeline | None:
        """None also where another key asked for it."""
        request, ended = self._open.get(request_id), False
        if request is None and request_id in self._ended:
            request, now = self._ended[request_id]
            ended = True
        return timeline_of(request, now, ended=ended) if request is not None and request.key == key else None
