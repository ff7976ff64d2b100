"""Series that change with every token or request: plain numbers here, made into Prometheus' form when asked for.

prometheus_client takes a lock for each observation, which cost a tenth of the gateway's time per token: docs/log.md.
Used on one thread; read on any.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

MAX_NAMED = 128 - len("request_id")  # characters of a request's id: OpenMetrics bounds an exemplar's names and values


class Tally(Collector):
    """A counter."""

    def __init__(self, name: str, text: str, registry: CollectorRegistry) -> None:
        self._name, self._text = name, text
        self._value = 0
        registry.register(self)

    @property
    def value(self) -> int:
        return self._value

    def inc(self, amount: int) -> None:
        self._value += amount

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(self._name, self._text, value=self._value)


class TallyHistogram(Collector):
    """A histogram. Of each bucket it remembers the last request that was named with a value, unless its client gave it
    an id that is too long to tell."""

    def __init__(self, name: str, text: str, bounds: Sequence[float], registry: CollectorRegistry) -> None:
        self._name, self._text, self._bounds = name, text, tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)  # not cumulative; the last is above all bounds
        self._seen: list[tuple[str, float, float] | None] = [None] * (len(bounds) + 1)  # request, value, when
        self._sum = 0.0
        registry.register(self)

    @property
    def counts(self) -> tuple[int, ...]:
        """Of each bucket by itself; the last is above all bounds."""
        return tuple(self._counts)

    def observe(self, value: float, request_id: str | None = None) -> None:
        place = bisect_left(self._bounds, value)
        self._counts[place] += 1
        self._sum += value
        if request_id is not None and len(request_id) <= MAX_NAMED:
            self._seen[place] = (request_id, value, time.time())

    def collect(self) -> Iterator[Metric]:
        total = 0
        cumulative: list[tuple[str, float] | tuple[str, float, Exemplar]] = []
        for bound, count, seen in zip((*self._bounds, float("inf")), self._counts, self._seen, strict=True):
            total += count
            name = "+Inf" if bound == float("inf") else str(float(bound))
            if seen is None:
                cumulative.append((name, float(total)))
            else:
                request_id, value, at = seen
                cumulative.append((name, float(total), Exemplar({"request_id": request_id}, value, at)))
        yield HistogramMetricFamily(self._name, self._text, buckets=cumulative, sum_value=self._sum)
