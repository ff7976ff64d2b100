"""Makes series under our names, on a registry."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge

from gateway.tallies import Tally, TallyHistogram


class SeriesMaker:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def counter(self, name: str, text: str, labels: tuple[str, ...] = (), values: Iterable[str] = ()) -> Counter:
        """values: of its only label, whose series are there from the start, or a first event would be no increase."""
        counter = Counter(f"headrace_{name}", text, labels, registry=self._registry)
        for value in values:
            counter.labels(value)
        return counter

    def gauge(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
        return Gauge(f"headrace_{name}", text, labels, registry=self._registry)

    def tally(self, name: str, text: str) -> Tally:
        return Tally(f"headrace_{name}", text, self._registry)

    def histogram(self, name: str, text: str, bounds: tuple[float, ...] | tuple[int, ...]) -> TallyHistogram:
        return TallyHistogram(f"headrace_{name}", text, bounds, self._registry)
