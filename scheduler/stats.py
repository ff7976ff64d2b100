"""What the scheduler counts, and how fast it went lately."""

from __future__ import annotations

from dataclasses import dataclass

HALF_LIFE_S = 10.0
KEEP_STEPS = 0.9  # of the weight of earlier steps, with each
KEEP_ANSWERS = 0.98  # of earlier answers
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

    def add(self, num_tokens: int, started: float, ended: float) -> float:
        """A step. Time that an earlier step has covered, or between steps, does not count. Returns what did."""
        seconds = max(0.0, ended - max(started, self._counted_to))
        self._counted_to = ended
        keep = 0.5 ** (seconds / HALF_LIFE_S)
        self._tokens = self._tokens * keep + num_tokens
        self._seconds = self._seconds * keep + seconds
        return seconds

    def seconds_for(self, num_tokens: int) -> float | None:
        """None: nothing was counted yet."""
        return num_tokens * self._seconds / self._tokens if self._tokens and self._seconds else None

    def retry_after_s(self, num_queued_tokens: int) -> float:
        """When the queue will probably be empty."""
        seconds = self.seconds_for(num_queued_tokens) or 0.0
        return min(max(seconds, MIN_RETRY_S), MAX_RETRY_S)


class Mean:
    """The earlier a value, the less it counts."""

    def __init__(self, keep: float) -> None:
        self._keep = keep
        self._sum = 0.0
        self._count = 0.0

    def add(self, value: float, count: float = 1.0) -> None:
        """value: the sum of so many."""
        self._sum = self._sum * self._keep + value
        self._count = self._count * self._keep + count

    @property
    def value(self) -> float | None:
        return self._sum / self._count if self._count else None


class Pace:
    """How long steps take that only decode, and what a token costs in those that read prompts. One speed for both would
    not do: a device reads many times as many tokens a second as it generates."""

    def __init__(self) -> None:
        self._step_s = Mean(KEEP_STEPS)
        self._mixed_s = Mean(KEEP_STEPS)  # of a step with prompts: while there have been no others
        self._token_s = Mean(KEEP_STEPS)

    def add(self, seconds: float, num_tokens: int, num_seqs: int) -> None:
        if num_tokens == num_seqs:
            self._step_s.add(seconds)
        else:
            self._mixed_s.add(seconds)
            self._token_s.add(seconds, num_tokens)

    def seconds(self, num_prompt_tokens: float, num_steps: float) -> float | None:
        """Of so much work. None: nothing has been done yet."""
        if num_prompt_tokens == num_steps == 0:
            return 0.0
        known = [mean.value for mean in (self._step_s, self._mixed_s) if mean.value is not None]
        if not known:
            return None
        step_s, token_s = known[0], self._token_s.value
        return num_steps * step_s + num_prompt_tokens * (step_s if token_s is None else token_s)


class AnswerLength:
    """Tokens that a sequence generates, as those did that ended by themselves; the earlier, the less they count."""

    def __init__(self) -> None:
        self._mean = Mean(KEEP_ANSWERS)

    def add(self, num_generated: int) -> None:
        self._mean.add(num_generated)

    def left(self, num_generated: int, at_most: int) -> float:
        """What one that has generated so many will probably generate yet."""
        mean = self._mean.value
        return at_most if mean is None else min(max(mean - num_generated, 1.0), at_most)
