"""One page of series from those of several gateways: what each counts for itself, added up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set

import msgspec
from prometheus_client.core import Metric
from prometheus_client.samples import Exemplar
from prometheus_client.samples import Sample as PageSample

PROCESS = "process_"  # of each gateway by itself
MACHINE = "headrace_gpu_"  # which all see alike
LASTING = frozenset({"counter", "histogram"})  # what a gateway that is gone has counted stays counted
Labels = tuple[tuple[str, str], ...]


class Sample(msgspec.Struct, frozen=True, array_like=True):
    name: str
    labels: dict[str, str]
    value: float
    exemplar: tuple[dict[str, str], float, float | None] | None = None  # labels, value, when


class Series(msgspec.Struct, frozen=True, array_like=True):
    """A family of samples."""

    name: str
    text: str
    kind: str
    samples: list[Sample]


def series_of(families: Iterable[Metric], without: Set[str]) -> list[Series]:
    """For another process. without: names of families that are the first gateway's alone."""
    return [
        Series(family.name, family.documentation, family.type, [_told(sample) for sample in family.samples])
        for family in families
        if family.name not in without and not family.name.startswith(MACHINE)
    ]


def _told(sample: PageSample) -> Sample:
    seen = sample.exemplar
    exemplar = None if seen is None else (dict(seen.labels), seen.value, _seconds(seen.timestamp))
    return Sample(sample.name, dict(sample.labels), sample.value, exemplar)


def _seconds(timestamp: object) -> float | None:
    return None if timestamp is None else float(timestamp)  # type: ignore[arg-type]


def lasting(series: Iterable[Series]) -> list[Series]:
    return [each for each in series if each.kind in LASTING and not each.name.startswith(PROCESS)]


def merged(own: Iterable[Metric], others: dict[int, list[Series]]) -> Iterator[Metric]:
    """own: the first gateway's, in whose order families come; others: by gateway; -1: of those that are gone."""
    pages = {number: {each.name: each for each in series} for number, series in others.items()}
    for family in own:
        told = {number: page[family.name] for number, page in pages.items() if family.name in page}
        if family.name.startswith(PROCESS):
            _each_by_itself(family, told)
        else:
            _add(family, told.values())
        yield family


def _each_by_itself(family: Metric, told: dict[int, Series]) -> None:
    own = [sample._replace(labels={**sample.labels, "gateway": "0"}) for sample in family.samples]
    more = [
        PageSample(sample.name, {**sample.labels, "gateway": str(number)}, sample.value)
        for number, series in told.items()
        for sample in series.samples
    ]
    family.samples = own + more


def _add(family: Metric, others: Iterable[Series]) -> None:
    total: dict[tuple[str, Labels], PageSample] = {_key(sample): sample for sample in family.samples}
    for series in others:
        for sample in series.samples:
            seen = PageSample(sample.name, sample.labels, sample.value, None, _exemplar(sample))
            before = total.get(_key(seen))
            total[_key(seen)] = seen if before is None else _sum(before, seen)
    family.samples = list(total.values())


def _sum(a: PageSample, b: PageSample) -> PageSample:
    return a._replace(value=a.value + b.value, exemplar=_newer(a.exemplar, b.exemplar))


def _newer(a: Exemplar | None, b: Exemplar | None) -> Exemplar | None:
    if a is None or b is None:
        return a or b
    return a if (_seconds(a.timestamp) or 0.0) >= (_seconds(b.timestamp) or 0.0) else b


def _exemplar(sample: Sample) -> Exemplar | None:
    return None if sample.exemplar is None else Exemplar(*sample.exemplar)


def _key(sample: PageSample) -> tuple[str, Labels]:
    return sample.name, tuple(sorted(sample.labels.items()))


def added(series: list[Series], more: list[Series]) -> list[Series]:
    """Both together."""
    found = {each.name: each for each in series}
    for each in more:
        before = found.get(each.name)
        if before is None:
            found[each.name] = each
            continue
        family = Metric(before.name, before.text, before.kind)
        family.samples = [PageSample(one.name, one.labels, one.value, None, _exemplar(one)) for one in before.samples]
        _add(family, [each])
        found[each.name] = series_of([family], frozenset())[0]
    return list(found.values())
