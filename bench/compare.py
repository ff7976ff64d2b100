"""The second server's figures over the first one's, with the intervals in which they lie.

Both ran the same rounds in turn. A resample draws rounds, the same ones for both because a machine changes from round
to round, and of each round the requests of each server anew. Rates are one figure a round, so only rounds are drawn.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bench.answers import Seen
from bench.measure import SLO, Round, rank

RESAMPLES = 1000
TAIL = 0.025  # on either side of the interval
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

WAITS: dict[str, Callable[[Seen], Sequence[float]]] = {
    "ttft": lambda seen: (seen.ttft_s,),
    "itl": lambda seen: seen.gaps_s,
    "tpot": lambda seen: (seen.tpot_s,) if seen.tpot_s is not None else (),
    "e2e": lambda seen: (seen.e2e_s,),
}


@dataclass(frozen=True, slots=True)
class Ratio:
    """Second over first; the interval holds 95 % of the resamples. None where either has no such figure, or 0."""

    name: str
    ratio: float | None
    low: float | None
    high: float | None


def ratios(first: Sequence[Round], second: Sequence[Round], slo: SLO, seed: int) -> list[Ratio]:
    """As many rounds of each, in the order they were run."""
    sides = [_Side(first, slo), _Side(second, slo)]
    points = [side.values([1] * len(first), None) for side in sides]
    rng = np.random.default_rng(seed)
    drawn: dict[str, list[float]] = {name: [] for name in points[0]}
    for _ in range(RESAMPLES):
        rounds = np.bincount(rng.integers(len(first), size=len(first)), minlength=len(first)).tolist()
        below, above = (side.values(rounds, rng) for side in sides)
        for name, values in drawn.items():
            if below[name] and name in above:
                values.append(above[name] / below[name])
    return [_ratio(name, points[0][name], points[1][name], drawn[name]) for name in points[0]]


def _ratio(name: str, below: float, above: float, drawn: Sequence[float]) -> Ratio:
    if not below or not above or not drawn:
        return Ratio(name, None, None, None)
    ordered = sorted(drawn)
    low, high = (ordered[rank(len(ordered), share)] for share in (TAIL, 1 - TAIL))
    return Ratio(name, round(above / below, 4), round(low, 4), round(high, 4))


@dataclass(frozen=True, slots=True)
class _Waits:
    """All waits of one kind, sorted, each with the request it is of."""

    values: Floats
    requests: Ints

    @classmethod
    def of(cls, waits: Sequence[Sequence[float]]) -> _Waits:
        values = np.fromiter(itertools.chain.from_iterable(waits), np.float64)
        requests = np.repeat(np.arange(len(waits)), [len(each) for each in waits])
        order = np.argsort(values, kind="stable")
        return cls(values[order], requests[order])

    def quantile(self, times: Ints, quantile: float) -> float:
        """With each request's waits so many times; 0 of nothing."""
        reached = np.cumsum(times[self.requests])
        num = int(reached[-1]) if len(reached) else 0
        return float(self.values[np.searchsorted(reached, rank(num, quantile), side="right")]) if num else 0.0


class _Side:
    """One server's rounds."""

    def __init__(self, rounds: Sequence[Round], slo: SLO) -> None:
        answered = [each.answered for each in rounds]
        self._sizes = [len(each) for each in answered]
        self._walls = [each.wall_s for each in rounds]
        self._counts = {
            "requests_per_s": self._sizes,
            "output_tok_per_s": [sum(seen.output_tokens for seen in each) for each in answered],
            "total_tok_per_s": [sum(seen.output_tokens + seen.prompt_tokens for seen in each) for each in answered],
        }
        if slo.is_given:
            self._counts["good_requests_per_s"] = [sum(slo.is_met(seen) for seen in each) for each in answered]
        seen = [one for each in answered for one in each]
        self._waits = {name: _Waits.of([of(one) for one in seen]) for name, of in WAITS.items()}

    def values(self, rounds: Sequence[int], rng: np.random.Generator | None) -> dict[str, float]:
        """Each round so many times, and its requests drawn anew each time; or as they were, without `rng`."""
        wall_s = sum(times * wall for times, wall in zip(rounds, self._walls, strict=True))
        values = {
            name: sum(times * count for times, count in zip(rounds, counts, strict=True)) / wall_s
            for name, counts in self._counts.items()
        }
        times = np.concatenate([self._times(*each, rng) for each in zip(rounds, self._sizes, strict=True)])
        for name, waits in self._waits.items():
            for quantile in (0.5, 0.99):
                values[f"{name}_p{quantile * 100:.0f}"] = waits.quantile(times, quantile)
        return values

    def _times(self, drawn: int, num: int, rng: np.random.Generator | None) -> Ints:
        """How often each of a round's requests counts."""
        if rng is None or not drawn * num:
            return np.full(num, drawn)
        return np.bincount(rng.integers(num, size=drawn * num), minlength=num)
