"""Figures of the last seconds, from what is counted anyway: nothing more is kept per token or request."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from gateway import buckets
from gateway.dashboard.types import Lately
from gateway.metrics import Figures

WINDOW_S = 5.0


def quantile(bounds: Sequence[float], counts: Sequence[int], share: float) -> float | None:
    """By even distribution within a bucket, so as right as the bounds are close. Above all bounds: the last."""
    wanted = share * sum(counts)
    if wanted == 0:
        return None
    low = 0.0
    for bound, count in zip(bounds, counts, strict=False):
        if count >= wanted:
            return low + (bound - low) * wanted / count
        wanted -= count
        low = bound
    return low


class Window:
    def __init__(self) -> None:
        self._taken: deque[tuple[float, Figures]] = deque()

    def add(self, now: float, figures: Figures) -> Lately:
        """What happened since the figures that are WINDOW_S old, or the first."""
        taken = self._taken
        taken.append((now, figures))
        while len(taken) > 2 and taken[1][0] <= now - WINDOW_S:
            taken.popleft()
        then, before = taken[0]
        seconds = now - then
        if seconds <= 0:
            return Lately()
        ttft = _more(figures.ttft, before.ttft)
        inter_token = _more(figures.inter_token, before.inter_token)
        return Lately(
            round(max(0, figures.generation_tokens - before.generation_tokens) / seconds, 1),
            round(max(0, figures.prompt_tokens - before.prompt_tokens) / seconds, 1),
            _ms(quantile(buckets.FIRST_TOKEN_S, ttft, 0.5)),
            _ms(quantile(buckets.FIRST_TOKEN_S, ttft, 0.99)),
            _ms(quantile(buckets.PER_TOKEN_S, inter_token, 0.5)),
            _ms(quantile(buckets.PER_TOKEN_S, inter_token, 0.99)),
        )


def _more(now: Sequence[int], before: Sequence[int]) -> list[int]:
    """Sums over gateways fall where one of them is gone."""
    return [max(0, each - earlier) for each, earlier in zip(now, before, strict=True)]


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(1000 * seconds, 2)
