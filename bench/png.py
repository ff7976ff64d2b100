"""The plot as PNG, by matplotlib, which is installed with headrace[plot] alone."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from bench.plot import COLOURS, COLUMNS, LOG_FROM, Panel

DPI = 120


class NoMatplotlib(Exception):
    """One line that says what to install."""


def check() -> None:
    """Raises NoMatplotlib."""
    if find_spec("matplotlib") is None:
        raise NoMatplotlib("PNG needs matplotlib: pip install 'headrace[plot]', or take .svg or .html")


def write_png(path: Path, panels: Sequence[Panel], titles: Sequence[str]) -> None:
    from matplotlib.figure import Figure  # takes half a second, for a plot alone

    rows = -(-len(panels) // COLUMNS)
    figure = Figure(figsize=(5.5 * COLUMNS, 3.4 * rows), layout="constrained")
    for place, panel in enumerate(panels):
        axes = figure.add_subplot(rows, COLUMNS, place + 1)
        for colour, series in zip(COLOURS * 2, panel.series, strict=False):
            xs, ys = zip(*series.points, strict=True)
            axes.plot(xs, ys, color=colour, marker="o", label=series.name)
        marks = sorted({x for series in panel.series for x, _ in series.points})
        if marks[-1] / marks[0] >= LOG_FROM:
            axes.set_xscale("log")
        axes.set_xticks(marks, [f"{mark:g}" for mark in marks], minor=False)
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.set(title=panel.title, xlabel=panel.x_name, ylabel=panel.y_name)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.supxlabel("\n".join(titles), fontsize="small")
    figure.savefig(path, dpi=DPI)
