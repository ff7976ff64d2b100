"""What one client may ask for: requests and tokens a minute, requests at the same time. Pure; the clock is given.

Tokens are charged as they are counted: all that the open requests of a client have used so far is taken before anybody
looks. An answer's length is not known before its end, so a request may run into debt; the next one waits it off.
Several gateways tell each other what was spent (gateway.siblings), and are that much behind.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, Protocol

import msgspec

Kind = Literal["requests", "tokens", "concurrency"]
MINUTE_S = 60.0
_TOLERANCE = 1e-6  # of a request or a token: who comes back at the very moment stated is let in


@dataclass(frozen=True, slots=True)
class RateLimits:
    """0: no limit."""

    rpm: int = 0
    tpm: int = 0
    concurrency: int = 0

    def __bool__(self) -> bool:
        return bool(self.rpm or self.tpm or self.concurrency)


class Spent(msgspec.Struct, frozen=True, array_like=True):
    """By one client at one gateway, since that told of it last; but for `open`, which is how many run there now."""

    client: bytes
    limits: RateLimits
    requests: float
    tokens: float
    open: int


class Meter(Protocol):
    """A request that counts its tokens while it runs."""

    @property
    def used_tokens(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Refusal:
    kind: Kind
    limit: int
    wait_s: float | None  # None: nobody can tell


@dataclass(eq=False, slots=True)
class Visit:
    """One open request."""

    meter: Meter
    charged: int = 0


@dataclass(slots=True)
class Bucket:
    """What was spent of a limit. It is forgiven evenly, as much as the limit each minute."""

    limit: int
    at: float
    spent: float = 0.0

    def forgive(self, now: float) -> None:
        self.spent = max(0.0, self.spent - max(0.0, now - self.at) * self.limit / MINUTE_S)
        self.at = max(self.at, now)

    @property
    def remaining(self) -> int:
        return max(0, math.floor(self.limit - self.spent + _TOLERANCE))

    @property
    def wait_s(self) -> float:
        """Until one more may be spent."""
        lacking = self.spent + 1 - self.limit
        return lacking * MINUTE_S / self.limit if lacking > _TOLERANCE else 0.0

    @property
    def reset_s(self) -> float:
        return self.spent * MINUTE_S / self.limit


@dataclass(slots=True)
class Account:
    """One client's."""

    limits: RateLimits
    opened_at: float
    _buckets: dict[Kind, Bucket] = field(init=False)
    _visits: set[Visit] = field(init=False, default_factory=set)
    _elsewhere: dict[int, int] = field(init=False, default_factory=dict)  # open requests by gateway
    _untold: dict[Kind, float] = field(init=False, default_factory=dict)  # spent here
    _told_open: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        of_a_minute: dict[Kind, int] = {"requests": self.limits.rpm, "tokens": self.limits.tpm}
        self._buckets = {kind: Bucket(limit, self.opened_at) for kind, limit in of_a_minute.items() if limit}

    def enter(self, meter: Meter, now: float) -> Visit | Refusal:
        """Who gets a Visit calls leave() with it."""
        self._settle(now)
        if (refusal := self._refusal()) is not None:
            return refusal
        self._spend("requests", 1)
        visit = Visit(meter)
        self._visits.add(visit)
        return visit

    def leave(self, visit: Visit, now: float, *, free: bool = False) -> None:
        """free: its tokens are given back. Its place among the requests of the minute is not."""
        self._settle(now)
        self._visits.discard(visit)
        if free:
            self._spend("tokens", -visit.charged)

    def take_spent(self, client: bytes, now: float) -> Spent | None:
        """What other gateways do not know yet. None: nothing."""
        self._settle(now)
        untold, self._untold = self._untold, {}
        num_open = len(self._visits)
        if not any(untold.values()) and num_open == self._told_open:
            return None
        self._told_open = num_open
        return Spent(client, self.limits, untold.get("requests", 0), untold.get("tokens", 0), num_open)

    def charge(self, gateway: int, spent: Spent, now: float) -> None:
        """What was spent at another gateway."""
        self._settle(now)
        told: dict[Kind, float] = {"requests": spent.requests, "tokens": spent.tokens}
        for kind, amount in told.items():
            if kind in self._buckets:
                self._buckets[kind].spent = max(0.0, self._buckets[kind].spent + amount)
        self._elsewhere[gateway] = spent.open

    def lose(self, gateway: int) -> None:
        """What was open there is not any more."""
        self._elsewhere.pop(gateway, None)

    def _spend(self, kind: Kind, amount: float) -> None:
        if kind in self._buckets:
            self._buckets[kind].spent = max(0.0, self._buckets[kind].spent + amount)
            self._untold[kind] = self._untold.get(kind, 0.0) + amount

    def headers(self, now: float) -> dict[str, str]:
        """In OpenAI's names and form."""
        self._settle(now)
        shown = {}
        for kind, bucket in self._buckets.items():
            shown[f"x-ratelimit-limit-{kind}"] = str(bucket.limit)
            shown[f"x-ratelimit-remaining-{kind}"] = str(bucket.remaining)
            shown[f"x-ratelimit-reset-{kind}"] = duration(bucket.reset_s)
        return shown

    def is_blank(self, now: float) -> bool:
        """A new one would be no different."""
        self._settle(now)
        is_open = self._visits or self._told_open or any(self._elsewhere.values())
        return not is_open and all(bucket.spent == 0 for bucket in self._buckets.values())

    def _refusal(self) -> Refusal | None:
        waits = [Refusal(kind, bucket.limit, bucket.wait_s) for kind, bucket in self._buckets.items() if bucket.wait_s]
        if waits:
            return max(waits, key=lambda refusal: refusal.wait_s or 0)
        num_open = len(self._visits) + sum(self._elsewhere.values())
        if self.limits.concurrency and num_open >= self.limits.concurrency:
            return Refusal("concurrency", self.limits.concurrency, None)
        return None

    def _settle(self, now: float) -> None:
        for bucket in self._buckets.values():
            bucket.forgive(now)
        if "tokens" in self._buckets:
            for visit in self._visits:
                used = visit.meter.used_tokens
                self._spend("tokens", used - visit.charged)
                visit.charged = used


class Accounts:
    """Of all clients that were here lately."""

    def __init__(self) -> None:
        self._accounts: dict[bytes, Account] = {}

    def __len__(self) -> int:
        return len(self._accounts)

    def of(self, client: bytes, limits: RateLimits, now: float) -> Account:
        account = self._accounts.get(client)
        if account is None or account.limits != limits:
            self._forget_blank(now)
            account = self._accounts[client] = Account(limits, now)
        return account

    def take_spent(self, now: float) -> list[Spent]:
        """For other gateways: what they do not know yet."""
        told = (account.take_spent(client, now) for client, account in self._accounts.items())
        return [spent for spent in told if spent is not None]

    def charge(self, gateway: int, spent: list[Spent], now: float) -> None:
        for each in spent:
            # Another gateway may know of a change of the limits later, or earlier.
            account = self._accounts.get(each.client) or self.of(each.client, each.limits, now)
            account.charge(gateway, each, now)

    def lose(self, gateway: int) -> None:
        for account in self._accounts.values():
            account.lose(gateway)

    def _forget_blank(self, now: float) -> None:
        self._accounts = {client: each for client, each in self._accounts.items() if not each.is_blank(now)}


def duration(seconds: float) -> str:
    """As Go writes it, in whole milliseconds: 0s, 20ms, 1.5s, 6m0s."""
    ms = math.ceil(seconds * 1000 - _TOLERANCE)
    if ms < 1000:
        return f"{ms}ms" if ms > 0 else "0s"
    minutes, rest_ms = divmod(ms, 60_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{rest_ms / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    if hours:
        return f"{hours}h{minutes}m{text}"
    return f"{minutes}m{text}" if minutes else text
