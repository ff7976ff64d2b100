"""What a run says at its end: tables for people, a dictionary for the last line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.arrivals import Load
from bench.compare import Ratio
from bench.measure import Figures, Spread
from bench.server import Server

LATE_MS = 10.0  # at p99, from there on an open loop was not the one asked for
BUSY = 0.9  # of a core: the client may be what was measured
WAITS = {"ttft_ms": "TTFT", "itl_ms": "ITL", "tpot_ms": "TPOT", "e2e_ms": "E2E"}
RATES = {
    "requests_per_s": "requests/s",
    "good_requests_per_s": "good requests/s",
    "output_tok_per_s": "out tok/s",
    "total_tok_per_s": "total tok/s",
}


@dataclass(frozen=True, slots=True)
class Level:
    load: Load
    figures: tuple[Figures, ...]  # of each server
    ratios: tuple[Ratio, ...]  # empty where there is one server


@dataclass(frozen=True, slots=True)
class Cells:
    """A table of any kind."""

    title: str
    columns: list[str]
    rows: list[tuple[str, list[str]]]  # a name, and a cell of each column


@dataclass(frozen=True, slots=True)
class Report:
    about: dict[str, Any]  # the run: command, date, versions, workload
    servers: tuple[Server, ...]
    levels: tuple[Level, ...]

    def as_json(self) -> dict[str, Any]:
        servers = [
            {
                "url": server.url,
                "model": server.model,
                "version": server.version,
                "exact_input_len": server.has_exact_words,
                "levels": [_load(level.load) | asdict(level.figures[place]) for level in self.levels],
            }
            for place, server in enumerate(self.servers)
        ]
        ratios = [_load(level.load) | {"ratios": [asdict(ratio) for ratio in level.ratios]} for level in self.levels]
        return {**self.about, "servers": servers, **({"compared": ratios} if len(self.servers) > 1 else {})}

    @property
    def titles(self) -> list[str]:
        """Of servers: their letters are those of a plot."""
        letters = ["A: ", "B: "] if len(self.servers) > 1 else [""]
        return [letter + server.title for letter, server in zip(letters, self.servers, strict=True)]

    def tables(self) -> list[Cells]:
        """Of each server, then of ratios."""
        names = [level.load.name for level in self.levels]
        found = [
            Cells(title, names, rows([level.figures[place] for level in self.levels]))
            for place, title in enumerate(self.titles)
        ]
        if len(self.servers) > 1:
            found.append(Cells("B over A, and its 95 % interval", names, _ratio_rows(self.levels)))
        return found

    def print(self, console: Console) -> None:
        for place, cells in enumerate(self.tables()):
            console.print(cells.title)
            console.print(_table(cells))
            if place < len(self.servers):
                for level in self.levels:
                    for line in remarks(level.figures[place]):
                        console.print(f"{level.load.name}: {line}")
            console.print()


def _load(load: Load) -> dict[str, Any]:
    return {"load": load.name, "axis": load.axis, "value": load.value}


def remarks(figures: Figures) -> list[str]:
    """What the figures alone would hide."""
    found = [
        f"{each.count} of {figures.requests} failed: {each.name}" + (f" ({each.example})" if each.example else "")
        for each in figures.failures
    ]
    if figures.cut_off:
        found.append(f"{figures.cut_off} were under way when the run was stopped")
    if figures.short_answers:
        found.append(f"{figures.short_answers} answers had fewer tokens than were asked for")
    if figures.answers_without_usage:
        found.append(f"{figures.answers_without_usage} answers came without usage: each event counts as one token")
    late_ms = figures.late_ms.p99 or 0.0
    if late_ms > LATE_MS:
        found.append(f"the client was behind: 1 % of the requests were sent {late_ms:.0f} ms late or more")
    if figures.client_busy > BUSY:
        found.append(f"the client was busy {figures.client_busy:.0%} of the time: it may be what was measured")
    return found


def rows(levels: Sequence[Figures]) -> list[tuple[str, list[str]]]:
    """(what, of each level), for tables of any kind."""
    found = [("answered / failed", [f"{each.answered} / {each.requests - each.answered}" for each in levels])]
    for name, title in RATES.items():
        values = [getattr(each, name) for each in levels]
        if None not in values:
            found.append((title, [_shown(value) for value in values]))
    for name, title in WAITS.items():
        for part in (field.name for field in fields(Spread)):
            found.append((f"{title} {part}, ms", [_shown(getattr(getattr(each, name), part)) for each in levels]))
    return found


def _shown(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _table(cells: Cells) -> Table:
    table = Table("", *cells.columns, pad_edge=False, box=None)
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    for title, values in cells.rows:
        table.add_row(title, *values)
    return table


def _ratio_rows(levels: Sequence[Level]) -> list[tuple[str, list[str]]]:
    figures = [each.name for each in levels[0].ratios]
    found = [{ratio.name: ratio for ratio in each.ratios} for each in levels]
    return [
        (_ratio_title(name), [_ratio_text(ratios[name]) if name in ratios else "-" for ratios in found])
        for name in figures
    ]


def _ratio_title(name: str) -> str:
    wait, _, quantile = name.rpartition("_")
    return RATES.get(name) or f"{wait.upper()} {quantile}"


def _ratio_text(each: Ratio) -> str:
    return "-" if each.ratio is None else f"{each.ratio:.3f} ({each.low:.3f} to {each.high:.3f})"
