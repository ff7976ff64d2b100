"""When requests are sent: so many in flight, at random moments of a given rate, or as a trace tells."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_TRACE_LINES = 1_000_000
MAX_TOKENS = 10_000_000  # of one prompt or answer


class TraceError(Exception):
    """One line that names the file and the line in it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A request of a trace."""

    at_s: float  # after the first one
    input_len: int
    output_len: int


@dataclass(frozen=True, slots=True)
class Closed:
    """Each of so many streams asks again once it has been answered."""

    concurrency: int
    axis = "streams"

    @property
    def name(self) -> str:
        return f"{self.concurrency} stream{'s' if self.concurrency > 1 else ''}"

    @property
    def value(self) -> float:
        return self.concurrency

    @property
    def usual_requests(self) -> int:
        return max(16, 4 * self.concurrency)


@dataclass(frozen=True, slots=True)
class Open:
    """Requests come whether or not others were answered."""

    rate: float  # requests a second
    burstiness: float = 1.0  # variance of a gap over that of a Poisson process
    burst: int = 1  # requests at one moment
    axis = "requests/s offered"

    @property
    def name(self) -> str:
        return f"{self.rate:g}/s"

    @property
    def value(self) -> float:
        return self.rate

    @property
    def usual_requests(self) -> int:
        return max(16, math.ceil(30 * self.rate))

    def moments(self, num: int, rng: random.Random) -> Iterator[float]:
        """Seconds; the first one is 0. Gaps are drawn from a gamma distribution, of which Poisson's is one."""
        mean_s, at = self.burst / self.rate, 0.0
        for place in range(num):
            if place and place % self.burst == 0:
                at += rng.gammavariate(1 / self.burstiness, mean_s * self.burstiness) if self.burstiness else mean_s
            yield at


@dataclass(frozen=True, slots=True)
class Replay:
    entries: tuple[Entry, ...]
    speed: float = 1.0
    axis = "speed of the trace"

    @property
    def name(self) -> str:
        return f"trace x {self.speed:g}"

    @property
    def value(self) -> float:
        return self.speed

    @property
    def usual_requests(self) -> int:
        return len(self.entries)

    def moments(self, num: int) -> Iterator[float]:
        return (entry.at_s / self.speed for entry in itertools.islice(self.entries, num))


Load = Closed | Open | Replay


def read_trace(path: Path) -> tuple[Entry, ...]:
    """By time, from 0. Raises TraceError."""
    entries = list[Entry]()
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if len(entries) == MAX_TRACE_LINES:
                    raise TraceError(f"{path}: more than {MAX_TRACE_LINES:,} lines")
                if line.strip():
                    entries.append(_entry(line, f"{path}, line {number}"))
    except (OSError, UnicodeDecodeError) as error:
        raise TraceError(f"{path}: {error}") from error
    if not entries:
        raise TraceError(f"{path}: no request is in it")
    entries.sort(key=lambda entry: entry.at_s)
    first = entries[0].at_s
    return tuple(Entry(entry.at_s - first, entry.input_len, entry.output_len) for entry in entries)


def _entry(line: str, place: str) -> Entry:
    try:
        told = json.loads(line)
    except ValueError as error:
        raise TraceError(f"{place}: not JSON: {error}") from error
    if not isinstance(told, dict):
        raise TraceError(f"{place}: not an object")
    at = told.get("at")
    if isinstance(at, bool) or not isinstance(at, int | float) or not 0 <= at < math.inf:
        raise TraceError(f'{place}: "at" must be seconds from 0 on, not {at!r}')
    return Entry(float(at), _length(told, "input_len", place), _length(told, "output_len", place))


def _length(told: dict[str, Any], name: str, place: str) -> int:
    length = told.get(name)
    if type(length) is not int or not 1 <= length <= MAX_TOKENS:
        raise TraceError(f'{place}: "{name}" must be a number of tokens from 1 on, not {length!r}')
    return length
