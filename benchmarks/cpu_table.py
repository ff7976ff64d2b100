"""From what was measured to what is said of it: medians, ratios to the best peer, and whether needs were held."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.cpu_cases import READY_AT_MOST_S, Case
from benchmarks.cpu_servers import OURS
from benchmarks.load import Figures

HEADER: tuple[str, ...] = (
    *("workload", "server", "tok/s", "range", "TTFT p50", "p99", "ITL p50", "p99", "failed", "rounds"),
)


@dataclass(frozen=True, slots=True)
class Visit:
    """One server in one round. A server that did not start has an error and no runs."""

    turn: int
    server: str
    ready_s: float | None = None
    error: str = ""
    runs: Mapping[str, Figures] = field(default_factory=dict)  # by the case's name


@dataclass(frozen=True, slots=True)
class Line:
    """A need, and what became of it. Without anybody to compare with, it has no verdict."""

    what: str
    ours: float | None
    peer: str  # the best of them at this
    theirs: float | None
    value: float | None  # ours/theirs, or ours itself where the need is absolute
    needed: float
    at_most: bool
    failed: int = 0  # of our requests and starts: a need is not held by failing
    their_failed: int = 0

    @property
    def held(self) -> bool | None:
        if self.failed:
            return False
        if self.value is None:
            return None if self.theirs is None else False
        return self.value <= self.needed if self.at_most else self.value >= self.needed

    @property
    def verdict(self) -> str:
        word = {True: "held", False: "MISSED", None: "not known"}[self.held]
        failures = ((self.failed, "ours"), (self.their_failed, "theirs"))
        return ", ".join([word, *(f"{num} of {whose} failed" for num, whose in failures if num)])

    def told(self) -> dict[str, Any]:
        names = ("what", "ours", "peer", "theirs", "value", "needed", "at_most", "failed", "their_failed", "held")
        return {name: getattr(self, name) for name in names}


Value = Callable[[Figures], float | None]


def tok_per_s(case: Case) -> Value:
    """None: nothing was answered."""
    return lambda run: (run.total_tok_per_s if case.total else run.output_tok_per_s) or None


def ttft_p99(run: Figures) -> float | None:
    return run.ttft_ms.get("p99")


def by_round(visits: Sequence[Visit], server: str, case: str, value: Value) -> dict[int, float]:
    """Without rounds in which the server did not get as far."""
    values = {visit.turn: value(visit.runs[case]) for visit in visits if visit.server == server and case in visit.runs}
    return {turn: number for turn, number in values.items() if number is not None}


def ready_s(visits: Sequence[Visit], server: str) -> float | None:
    """The median of warm starts: the first one counts only where it is the only one."""
    times = [visit.ready_s for visit in visits if visit.server == server and visit.ready_s is not None]
    return statistics.median(times[1:] or times) if times else None


def lines(visits: Sequence[Visit], cases: Sequence[Case]) -> list[Line]:
    peers = sorted({visit.server for visit in visits} - {OURS})
    found = []
    for case in cases:
        if case.needed is None:
            continue
        unit = "total tok/s" if case.total else "out tok/s"
        found.append(_beside(visits, peers, case, f"{case.title}: {unit}", tok_per_s(case), case.needed, False))
        found.append(_beside(visits, peers, case, f"{case.title}: TTFT p99 ms", ttft_p99, 1.0, True))
    ready = ready_s(visits, OURS)
    theirs = {peer: took for peer in peers if (took := ready_s(visits, peer)) is not None}
    best = min(theirs, key=theirs.__getitem__, default="")
    failed = num_failed(visits, OURS)
    found.append(Line("command to ready, warm: s", ready, best, theirs.get(best), ready, READY_AT_MOST_S, True, failed))
    return found


def num_failed(visits: Sequence[Visit], server: str, case: str = "") -> int:
    """Starts, and requests of the case."""
    own = [visit for visit in visits if visit.server == server]
    return sum(bool(visit.error) for visit in own) + sum(visit.runs[case].failed for visit in own if case in visit.runs)


def _beside(
    visits: Sequence[Visit], peers: Sequence[str], case: Case, what: str, value: Value, needed: float, at_most: bool
) -> Line:
    """Best is the peer of the best median. The ratio is the median over the rounds, each round's beside its own."""
    own = by_round(visits, OURS, case.name, value)
    all_theirs = {peer: rounds for peer in peers if (rounds := by_round(visits, peer, case.name, value))}
    middles = {peer: statistics.median(rounds.values()) for peer, rounds in all_theirs.items()}
    best = (min if at_most else max)(middles, key=middles.__getitem__, default="")
    ratios = [own[turn] / number for turn, number in all_theirs.get(best, {}).items() if turn in own]
    ratio = statistics.median(ratios) if ratios else None
    middle = statistics.median(own.values()) if own else None
    failures = num_failed(visits, OURS, case.name), num_failed(visits, best, case.name)
    return Line(what, middle, best, middles.get(best), ratio, needed, at_most, *failures)


def measured_table(visits: Sequence[Visit], cases: Sequence[Case]) -> str:
    """Of every server at every case: medians over the rounds, and the range of its throughput."""
    rows: list[tuple[str, ...]] = [
        ("workload", "server", "tok/s", "range", "TTFT p50", "p99", "ITL p50", "p99", "failed", "rounds")
    ]
    servers = list(dict.fromkeys(visit.server for visit in visits))
    for case in cases:
        rows += [_row(visits, case, server) for server in servers]
    failures = list(dict.fromkeys(_failures(visits)))
    return "\n".join([*_aligned(rows, 2), *failures])


def _row(visits: Sequence[Visit], case: Case, server: str) -> tuple[str, ...]:
    speeds = list(by_round(visits, server, case.name, tok_per_s(case)).values())
    runs = [visit.runs[case.name] for visit in visits if visit.server == server and case.name in visit.runs]
    waits = [_median([run.ttft_ms.get(q) for run in runs]) for q in ("p50", "p99")]
    waits += [_median([run.itl_ms.get(q) for run in runs]) for q in ("p50", "p99")]
    spread = f"{min(speeds):,.1f}-{max(speeds):,.1f}" if speeds else "-"
    failed, asked = sum(run.failed for run in runs), sum(run.requests for run in runs)
    title = case.title + (": total" if case.total else "")
    counts = (f"{failed}/{asked}", str(len(runs)))
    return title, server, _shown(_median(speeds)), spread, *map(_shown, waits), *counts


def _failures(visits: Sequence[Visit]) -> Iterator[str]:
    for visit in visits:
        if visit.error:
            yield f"{visit.server}, round {visit.turn}: {visit.error}"
        for name, run in visit.runs.items():
            if run.failed:
                yield f"{visit.server}, {name}: {run.first_failure}"


def needs_table(found: Sequence[Line]) -> str:
    rows = [("need", OURS, "best peer", "theirs", "ratio", "needed", "")]
    for line in found:
        bound = f"{'at most' if line.at_most else 'at least'} {line.needed:g}"
        ratio = "" if line.value == line.ours else _shown(line.value, 2)
        rows.append((line.what, _shown(line.ours), line.peer or "-", _shown(line.theirs), ratio, bound, line.verdict))
    return "\n".join(_aligned(rows, 1))


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _shown(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _aligned(rows: Sequence[tuple[str, ...]], num_left: int) -> list[str]:
    """Columns: the first ones to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place < num_left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
