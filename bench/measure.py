"""From what requests saw to the figures of one level of load."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.answers import Seen

QUANTILES = (0.5, 0.9, 0.99)
MAX_KINDS = 20  # of failures that are told apart


@dataclass(frozen=True, slots=True)
class SLO:
    """What a request must keep to, in ms. None: no bound."""

    ttft: float | None = None
    tpot: float | None = None
    e2e: float | None = None

    @property
    def is_given(self) -> bool:
        return any(bound is not None for bound in (self.ttft, self.tpot, self.e2e))

    def is_met(self, seen: Seen) -> bool:
        pairs = ((self.ttft, seen.ttft_s), (self.tpot, seen.tpot_s), (self.e2e, seen.e2e_s))
        return all(bound is None or wait_s is None or wait_s * 1e3 <= bound for bound, wait_s in pairs)


@dataclass(frozen=True, slots=True)
class Round:
    """All requests of one level, sent once."""

    seen: Sequence[Seen]
    wall_s: float  # from the first request to the end of the last answer
    client_cpu_s: float
    cut_off: int = 0  # requests that were under way when the run was stopped

    @property
    def answered(self) -> list[Seen]:
        return [seen for seen in self.seen if not seen.failure]


@dataclass(frozen=True, slots=True)
class Spread:
    """Of waits, in ms; each quantile is a wait that was. None of nothing."""

    p50: float | None
    p90: float | None
    p99: float | None
    mean: float | None

    @classmethod
    def of(cls, waits_s: Iterable[float | None]) -> Spread:
        ordered = sorted(wait for wait in waits_s if wait is not None)
        if not ordered:
            return cls(None, None, None, None)
        ranks = (ordered[rank(len(ordered), quantile)] for quantile in QUANTILES)
        return cls(*(round(wait * 1e3, 3) for wait in (*ranks, sum(ordered) / len(ordered))))


def rank(num: int, quantile: float) -> int:
    """Which of `num` values in order a quantile is, from 0. One after the nearest rank where the product is whole."""
    return min(num - 1, int(quantile * num))


@dataclass(frozen=True, slots=True)
class Failures:
    """Of one kind."""

    name: str
    count: int
    example: str


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one level, all its rounds together. Rates are of answered requests, over the time that all of them took."""

    requests: int
    answered: int
    failures: tuple[Failures, ...]
    cut_off: int
    wall_s: float
    requests_per_s: float
    output_tok_per_s: float
    total_tok_per_s: float
    ttft_ms: Spread
    itl_ms: Spread
    tpot_ms: Spread
    e2e_ms: Spread
    good_requests_per_s: float | None  # None: no SLO was given
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    short_answers: int
    answers_without_usage: int
    late_ms: Spread  # requests sent after their moment; of nothing in a closed loop
    client_cpu_s: float
    client_busy: float  # share of one core


def figures(rounds: Sequence[Round], slo: SLO) -> Figures:
    seen = [seen for each in rounds for seen in each.seen]
    answered = [one for one in seen if not one.failure]
    wall_s = sum(each.wall_s for each in rounds) or 1e-9
    cpu_s = sum(each.client_cpu_s for each in rounds)
    prompt, output = sum(one.prompt_tokens for one in answered), sum(one.output_tokens for one in answered)
    good = sum(slo.is_met(one) for one in answered) / wall_s
    return Figures(
        requests=len(seen),
        answered=len(answered),
        failures=failures(seen),
        cut_off=sum(each.cut_off for each in rounds),
        wall_s=round(wall_s, 3),
        requests_per_s=round(len(answered) / wall_s, 4),
        output_tok_per_s=round(output / wall_s, 2),
        total_tok_per_s=round((prompt + output) / wall_s, 2),
        ttft_ms=Spread.of(one.ttft_s for one in answered),
        itl_ms=Spread.of(gap for one in answered for gap in one.gaps_s),
        tpot_ms=Spread.of(one.tpot_s for one in answered),
        e2e_ms=Spread.of(one.e2e_s for one in answered),
        good_requests_per_s=round(good, 4) if slo.is_given else None,
        prompt_tokens=prompt,
        cached_tokens=sum(one.cached_tokens for one in answered),
        output_tokens=output,
        short_answers=sum(one.is_short for one in answered),
        answers_without_usage=sum(one.is_counted_here for one in answered),
        late_ms=Spread.of(one.late_s for one in answered if one.late_s),
        client_cpu_s=round(cpu_s, 3),
        client_busy=round(cpu_s / wall_s, 3),
    )


def failures(seen: Iterable[Seen]) -> tuple[Failures, ...]:
    """The most frequent kind first."""
    found = [one.failure for one in seen if one.failure]
    examples = {failure.name: failure.detail for failure in reversed(found)}
    counts = Counter(failure.name for failure in found)
    told = [Failures(name, count, examples[name]) for name, count in counts.most_common(MAX_KINDS)]
    rest = counts.total() - sum(each.count for each in told)
    return (*told, Failures("others", rest, "")) if rest else tuple(told)
