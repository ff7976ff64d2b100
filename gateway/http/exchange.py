"""What is known of one HTTP request while it runs, and the one line that is logged of it. Never its text."""

from __future__ import annotations

import asyncio
import logging
import re
from dataclasses import dataclass, field
from typing import Any, ClassVar

import msgspec

from gateway.errors import ApiError
from gateway.http import faults
from gateway.logs import Event
from gateway.metrics import Metrics
from gateway.timeline.laps import Laps
from gateway.timeline.store import causes_of

_log = logging.getLogger("headrace.access")
_WELL_FORMED_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_QUIET = frozenset({"health", "metrics"})  # asked for every few seconds


@dataclass(slots=True)
class Exchange:
    request_id: str
    method: str
    started: float
    endpoint: str = "other"
    status: int = 0
    outcome: str = ""
    stream: bool = False
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    ttft_s: float | None = None
    key: str | None = None  # the name of the one that was given
    is_admin: bool = False  # by that key
    running_on: RunningOn | None = None  # when it has been answered
    laps: Laps = field(default_factory=Laps)

    @property
    def used_tokens(self) -> int:
        later = 0 if self.running_on is None else self.running_on.exchange.used_tokens
        return self.prompt_tokens + self.generated_tokens + later

    def fail(self, error: ApiError) -> None:
        """The first outcome counts."""
        self.outcome = self.outcome or faults.outcome(error)

    def end(self, metrics: Metrics) -> None:
        """Counts it and logs it, once its outcome is known."""
        seconds = self.laps.end()
        metrics.request_ended(self.endpoint, self.outcome, seconds, self.request_id)
        if self.key is not None:
            metrics.tenant_ended(self.key, self.prompt_tokens, self.generated_tokens)
        self.log(seconds)

    def log(self, seconds: float) -> None:
        level = logging.DEBUG if self.endpoint in _QUIET else logging.INFO
        if _log.isEnabledFor(level):
            _log.log(level, AccessLine.of(self, seconds))


@dataclass(frozen=True, slots=True)
class RunningOn:
    """Work that a request has left behind, with a line of its own in the log."""

    exchange: Exchange
    task: asyncio.Task[None]


class AccessLine(Event, frozen=True):
    says: ClassVar[str] = "request"

    request_id: str
    method: str
    endpoint: str
    status: int
    outcome: str
    stream: bool
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    ttft_ms: float | None
    total_ms: float
    causes_ms: dict[str, float]  # what the time went into; see docs/timelines.md
    key: str | msgspec.UnsetType = msgspec.UNSET  # where keys are set

    @classmethod
    def of(cls, exchange: Exchange, seconds: float) -> AccessLine:
        return cls(
            exchange.request_id,
            exchange.method,
            exchange.endpoint,
            exchange.status,
            exchange.outcome,
            exchange.stream,
            exchange.prompt_tokens,
            exchange.cached_tokens,
            exchange.generated_tokens,
            None if exchange.ttft_s is None else round(exchange.ttft_s * 1000, 3),
            round(seconds * 1000, 3),
            {spent.cause: spent.ms for spent in causes_of(exchange.laps)},
            exchange.key or msgspec.UNSET,
        )


def request_id(headers: list[tuple[bytes, bytes]], draw: int) -> str:
    """The client's own where it is well-formed."""
    for name, value in headers:
        if name.lower() == b"x-request-id":
            text = value.decode("latin-1")
            if _WELL_FORMED_ID.fullmatch(text):
                return text
    return f"req-{draw:032x}"


def exchange_of(scope: Any) -> Exchange:
    """The middleware put it there, so every route finds it."""
    exchange: Exchange = scope["headrace.exchange"]
    return exchange
