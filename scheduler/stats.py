"""What the scheduler counts, and how fast it went lately."""

from __future__ import annotations

from dataclasses import dataclass

HALF_LIFE_S = 10.0
KEEP_ANSWERS = 0.98
MIN_RETRY_S = 1.0
MAX_RETRY_S = 120.0  # the OpenAI SDK does not retry at all above this


@dataclass(slots=True)
class Counters:
    steps: int = 0
    failed_steps: int = 0
    preemptions: int = 0
    recomputed_tokens: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0


class TokenRate:
    """Tokens computed per second of work, prompt and generated alike; the older, the less they count."""

    def __init__(self) -> None:
        self._tokens = 0.0
        self._seconds = 0.0
        self._counted_to = float("-inf")

    def add(self, num_tokens: int, started: float, ended: float) -> None:
        """A step. Time that an earlier step has covered, or between steps, does not count."""
        seconds = max(0.0, ended - max(started, self._counted_to))
        self._counted_to = ended
        keep = 0.5 ** (seconds / HALF_LIFE_S)
        self._tokens = self._tokens * keep + num_tokens
        self._seconds = self._seconds * keep + seconds

    def seconds_for(self, num_tokens: int) -> float | None:
        """None: nothing was counted yet."""
        return num_tokens * self._seconds / self._tokens if self._tokens and self._seconds else None

    def retry_after_s(self, num_queued_tokens: int) -> float:
        """When the queue will probably be empty."""
        seconds = self.seconds_for(num_queued_tokens) or 0.0
        return min(max(seconds, MIN_RETRY_S), MAX_RETRY_S)


class AnswerLength:
    """Tokens that a sequence generates, as those did that ended by themselves; the earlier, the less they count."""

    def __init__(self) -> None:
        self._sum = 0.0
        self._count = 0.0

    def add(self, num_generated: int) -> None:
        self._sum = self._sum * KEEP_ANSWERS + num_generated
        self._count = self._count * KEEP_ANSWERS + 1

    def left(self, num_generated: int, at_most: int) -> float:
        """What one that has generated so many will probably generate yet."""
        if self._count == 0:
            return at_most
        return min(max(self._sum / self._count - num_generated, 1), at_most)
