"""Draws the sweeps of results of `make bench` as SVG files: tok/s against streams, and ITL against context.

    python -m benchmarks.cpu_plots benchmarks/results/x.json [benchmarks/results/y.json ...] docs/plots

Writes streams.svg and contexts.svg, those of which the result has points. Colours are legible on white and on black.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from benchmarks.cpu_cases import CONTEXT, STREAMS

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 56, 48
GREY = "#7d8590"
COLOURS = ("#2f81f7", "#d9730d", "#2da44e", "#bf4bce")
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Plot:
    title: str
    x_name: str
    y_name: str
    series: Mapping[str, Points]

    def svg(self) -> str:
        marks = sorted({x for points in self.series.values() for x, _ in points})
        step = nice_step(max(y for points in self.series.values() for _, y in points))
        top = step * math.ceil(max(y for points in self.series.values() for _, y in points) / step)
        scale = _Scale(marks[0], marks[-1], top)
        parts = [_text(LEFT, 18, self.title, "start", 14), _text(LEFT, HEIGHT - 8, self.x_name, "start")]
        parts += [_text(LEFT, TOP - 10, self.y_name, "start")]
        for number in range(round(top / step) + 1):
            y = scale.y(number * step)
            parts.append(f'<path d="M{LEFT} {y}H{WIDTH - RIGHT}" stroke="{GREY}" stroke-opacity=".3"/>')
            parts.append(_text(LEFT - 8, y + 4, f"{number * step:,g}", "end"))
        parts += [_text(scale.x(mark), HEIGHT - BOTTOM + 18, f"{mark:,g}", "middle") for mark in marks]
        for place, (name, points) in enumerate(self.series.items()):
            parts += _line(name, points, scale, COLOURS[place % len(COLOURS)], place)
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif"'
        return "\n".join([f'{head} role="img" aria-label="{escape(self.title)}">', *parts, "</svg>"]) + "\n"


@dataclass(frozen=True, slots=True)
class _Scale:
    """Powers of two are as far from each other as the width allows; y begins at 0."""

    least: float
    most: float
    top: float

    def x(self, value: float) -> float:
        width = math.log2(self.most / self.least) or 1.0
        return round(LEFT + 16 + (WIDTH - LEFT - RIGHT - 32) * math.log2(value / self.least) / width, 1)

    def y(self, value: float) -> float:
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / self.top, 1)


def nice_step(largest: float) -> float:
    """1, 2 or 5 times a power of ten, of which three to seven reach the largest."""
    power = 10.0 ** math.floor(math.log10(largest))
    return next(power * part for part in (0.2, 0.5, 1.0, 2.0) if largest / (power * part) <= 6)


def _line(name: str, points: Points, scale: _Scale, colour: str, place: int) -> list[str]:
    """With its dots, and its name above the plot."""
    corners = [(scale.x(x), scale.y(y)) for x, y in points]
    path = "L".join(f"{x} {y}" for x, y in corners)
    dots = [f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>' for x, y in corners]
    at = LEFT + 130 + 130 * place
    key = f'<circle cx="{at}" cy="{TOP - 14}" r="4" fill="{colour}"/>' + _text(at + 10, TOP - 10, name, "start")
    return [f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>', *dots, key]


def _text(x: float, y: float, text: str, anchor: str, size: int = 12) -> str:
    return f'<text x="{x}" y="{y}" fill="{GREY}" font-size="{size}" text-anchor="{anchor}">{escape(text)}</text>'


def points(visits: Sequence[Mapping[str, Any]], prefix: str, *path: str) -> dict[str, Points]:
    """Of every server: medians over the rounds of a figure at each point of a sweep, where it answered at all."""
    found: dict[str, dict[int, list[float]]] = {}
    for visit in visits:
        for case, run in visit["runs"].items():
            value: Any = run
            for key in path:
                value = value.get(key, {})
            if case.startswith(prefix) and value and run["failed"] == 0:
                at = int(case.removeprefix(prefix))
                found.setdefault(visit["server"], {}).setdefault(at, []).append(float(value))
    return {
        server: [(at, statistics.median(values)) for at, values in sorted(by_place.items())]
        for server, by_place in found.items()
    }


def plots(*results: Mapping[str, Any]) -> dict[str, Plot]:
    """By the file's name, of one kind of machine."""
    visits = [visit for result in results for visit in result["visits"]]
    machine = results[0]["machine"]
    place = f"{machine['processor']}, {machine['cores']} cores"
    speeds = points(visits, STREAMS, "output_tok_per_s")
    gaps = points(visits, CONTEXT, "itl_ms", "p50")
    found = {
        "streams.svg": Plot(f"Out tok/s, 128 in, 128 out ({place})", "streams", "tok/s", speeds),
        "contexts.svg": Plot(f"ITL p50 of one stream ({place})", "tokens of the prompt", "ms", gaps),
    }
    return {name: plot for name, plot in found.items() if plot.series}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for name, plot in plots(*(json.loads(path.read_text()) for path in args.results)).items():
        (args.folder / name).write_text(plot.svg())
        print(args.folder / name)


if __name__ == "__main__":
    main()
