"""Latency and throughput against load: what is drawn, as SVG, and as a page that needs nothing from outside."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from bench.report import Cells

KINDS = (".html", ".svg", ".png")
WIDTH, HEIGHT = 520, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 20, 64, 44
COLUMNS = 2
GREY = "#7d8590"
COLOURS = ("#2f81f7", "#d9730d", "#2da44e", "#bf4bce", "#1b9e9e", "#c93c37")
LOG_FROM = 6.0  # how many times the least load the most is, where steps are by ratio


@dataclass(frozen=True, slots=True)
class Series:
    name: str
    points: tuple[tuple[float, float], ...]  # by load


@dataclass(frozen=True, slots=True)
class Panel:
    title: str
    x_name: str
    y_name: str
    series: tuple[Series, ...]


def panels(result: dict[str, Any]) -> list[Panel]:
    """Of a run's result. A level of which there is no figure is left out."""
    is_one = len(result["servers"]) == 1
    names = [""] if is_one else ["A ", "B "]
    axis = next(level["axis"] for level in result["servers"][0]["levels"])
    waits = {"ttft_ms": "Time to first token", "itl_ms": "Gap between tokens", "e2e_ms": "Whole answer"}
    parts = ("p50", "p90", "p99") if is_one else ("p50", "p99")
    found = [
        Panel(title, axis, "ms", tuple(_series(result, names, [(name, part) for part in parts])))
        for name, title in waits.items()
    ]
    rates = [("output_tok_per_s", ""), *([("total_tok_per_s", "")] if is_one else [])]
    found.append(Panel("Throughput", axis, "tok/s", tuple(_series(result, names, rates))))
    return [panel for panel in found if panel.series]


def _series(result: dict[str, Any], names: Sequence[str], figures: Sequence[tuple[str, str]]) -> Iterator[Series]:
    for server, name in zip(result["servers"], names, strict=True):
        for figure, part in figures:
            values = [(level["value"], level[figure][part] if part else level[figure]) for level in server["levels"]]
            points = tuple(sorted((x, y) for x, y in values if y))
            if points:
                yield Series(f"{name}{part or figure.partition('_')[0]}", points)


@dataclass(frozen=True, slots=True)
class _Scale:
    """From a panel's values to its pixels. y begins at 0."""

    least: float
    most: float
    top: float

    @classmethod
    def of(cls, panel: Panel) -> _Scale:
        xs = [x for series in panel.series for x, _ in series.points]
        largest = max(y for series in panel.series for _, y in series.points)
        step = nice_step(largest)
        return cls(min(xs), max(xs), step * math.ceil(largest / step - 1e-9))

    def x(self, value: float) -> float:
        if self.most == self.least:
            share = 0.5
        elif self.most / self.least >= LOG_FROM:
            share = math.log(value / self.least) / math.log(self.most / self.least)
        else:
            share = (value - self.least) / (self.most - self.least)
        return round(LEFT + 16 + (WIDTH - LEFT - RIGHT - 32) * share, 1)

    def y(self, value: float) -> float:
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / self.top, 1)


def nice_step(largest: float) -> float:
    """1, 2 or 5 times a power of ten, of which three to six reach the largest."""
    power = 10.0 ** math.floor(math.log10(largest))
    return next(power * part for part in (0.2, 0.5, 1.0, 2.0) if largest / (power * part) <= 6)


def drawn(panel: Panel) -> str:
    """An <svg> of it."""
    scale = _Scale.of(panel)
    parts = [_text(LEFT, 20, panel.title, "start", 14), _text(WIDTH - RIGHT, HEIGHT - 8, panel.x_name, "end")]
    parts.append(_text(LEFT - 8, TOP - 12, panel.y_name, "end"))
    step = nice_step(scale.top)
    for number in range(round(scale.top / step) + 1):
        y = scale.y(number * step)
        parts.append(f'<path d="M{LEFT} {y}H{WIDTH - RIGHT}" stroke="{GREY}" stroke-opacity=".3"/>')
        parts.append(_text(LEFT - 8, y + 4, f"{number * step:,g}", "end"))
    marks = sorted({x for series in panel.series for x, _ in series.points})
    parts += [_text(scale.x(mark), HEIGHT - BOTTOM + 18, f"{mark:g}", "middle") for mark in marks]
    for place, series in enumerate(panel.series):
        parts += _line(series, scale, COLOURS[place % len(COLOURS)], place)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
    head += f' font-family="sans-serif" role="img" aria-label="{escape(panel.title)}">'
    return "\n".join([head, *parts, "</svg>"])


def _line(series: Series, scale: _Scale, colour: str, place: int) -> list[str]:
    """With its dots, and its name above the plot."""
    corners = [(scale.x(x), scale.y(y)) for x, y in series.points]
    path = "L".join(f"{x} {y}" for x, y in corners)
    dots = [
        f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"><title>{escape(series.name)}: {value:g}</title></circle>'
        for (x, y), (_, value) in zip(corners, series.points, strict=True)
    ]
    at = LEFT + 8 + 84 * place
    key = f'<circle cx="{at}" cy="38" r="4" fill="{colour}"/>' + _text(at + 9, 42, series.name, "start")
    return [f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>', *dots, key]


def _text(x: float, y: float, text: str, anchor: str, size: int = 12) -> str:
    return f'<text x="{x}" y="{y}" fill="{GREY}" font-size="{size}" text-anchor="{anchor}">{escape(text)}</text>'


def svg(result: dict[str, Any], titles: Sequence[str]) -> str:
    """All panels in one picture, with the servers' names below."""
    found = panels(result)
    height = HEIGHT * math.ceil(len(found) / COLUMNS)
    placed = [
        drawn(panel).replace("<svg ", f'<svg x="{WIDTH * (place % COLUMNS)}" y="{HEIGHT * (place // COLUMNS)}" ', 1)
        for place, panel in enumerate(found)
    ]
    names = [_text(LEFT, height + 20 * (place + 1), title, "start") for place, title in enumerate(titles)]
    size = f"{WIDTH * COLUMNS} {height + 20 * len(names) + 8}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" font-family="sans-serif">'
    return "\n".join([head, *placed, *names, "</svg>"]) + "\n"


STYLE = """:root{color-scheme:light dark}body{font:14px/1.5 sans-serif;margin:2em auto;max-width:1080px;padding:0 1em}
svg{max-width:100%;height:auto}table{border-collapse:collapse;margin:1em 0}td,th{padding:2px 12px;text-align:right}
td:first-child,th:first-child{text-align:left}pre{white-space:pre-wrap;overflow-wrap:anywhere}"""


def html(result: dict[str, Any], tables: Sequence[Cells]) -> str:
    body = ["<h1>headrace bench</h1>", f"<p>{escape(result['date'])}</p><pre>{escape(result['command'])}</pre>"]
    body += [drawn(panel) for panel in panels(result)]
    for cells in tables:
        head = "".join(f"<th>{escape(name)}</th>" for name in ("", *cells.columns))
        lines = ["".join(f"<td>{escape(cell)}</td>" for cell in (name, *values)) for name, values in cells.rows]
        rows = "".join(f"<tr>{line}</tr>" for line in (head, *lines))
        body.append(f"<h2>{escape(cells.title)}</h2><table>{rows}</table>")
    body.append(f"<details><summary>JSON</summary><pre>{escape(json.dumps(result, indent=1))}</pre></details>")
    start = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>headrace bench</title><style>{STYLE}</style>'
    return "\n".join([start, *body, "</html>"]) + "\n"


def write(path: Path, result: dict[str, Any], titles: Sequence[str], tables: Sequence[Cells]) -> None:
    """Raises OSError."""
    if path.suffix == ".png":
        from bench.png import write_png  # needs matplotlib

        write_png(path, panels(result), titles)
    else:
        path.write_text(html(result, tables) if path.suffix == ".html" else svg(result, titles))
