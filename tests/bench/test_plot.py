"""Pictures of a result."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from bench.plot import drawn, nice_step, panels, write
from bench.report import Cells


def result(levels: int = 3, servers: int = 1) -> dict[str, Any]:
    def level(place: int) -> dict[str, Any]:
        spread = {"p50": 10.0 * place, "p90": 12.0 * place, "p99": 15.0 * place, "mean": 11.0}
        rates = {"output_tok_per_s": 100.0 * place, "total_tok_per_s": 200.0 * place}
        return {"axis": "streams", "value": 4**place, "ttft_ms": spread, "itl_ms": spread, "e2e_ms": spread, **rates}

    about = {"command": "headrace bench '<b>'", "date": "2026-11-28"}
    return {**about, "servers": [{"levels": [level(place + 1) for place in range(levels)]} for _ in range(servers)]}


CELLS = [Cells("a <server>", ["1 stream"], [("TTFT", ["<1"])])]
SVG = "{http://www.w3.org/2000/svg}"


def test_panels_hold_the_figures_by_load() -> None:
    ttft, itl, e2e, throughput = panels(result())
    assert [series.name for series in ttft.series] == ["p50", "p90", "p99"]
    assert ttft.series[2].points == ((4, 15.0), (16, 30.0), (64, 45.0))
    assert [series.name for series in throughput.series] == ["output", "total"]
    assert (itl.x_name, e2e.y_name) == ("streams", "ms")
    assert [series.name for series in panels(result(servers=2))[0].series] == ["A p50", "A p99", "B p50", "B p99"]


def test_a_level_without_figures_is_left_out() -> None:
    told = result()
    told["servers"][0]["levels"][1]["ttft_ms"] = dict.fromkeys(("p50", "p90", "p99", "mean"))
    assert panels(told)[0].series[0].points == ((4, 10.0), (64, 30.0))


@pytest.mark.parametrize("levels", [1, 3])
def test_svg_has_every_point(tmp_path: Path, levels: int) -> None:
    write(tmp_path / "x.svg", result(levels), ["a <server>"], CELLS)
    root = ET.parse(tmp_path / "x.svg").getroot()
    dots = [dot for dot in root.iter(f"{SVG}circle") if dot.get("r") == "3"]
    assert [text.text for text in root.findall(f"{SVG}text")] == ["a <server>"]
    assert len(dots) == levels * (3 * 3 + 2)
    assert all(0 < float(dot.attrib["cx"]) < 520 and 0 < float(dot.attrib["cy"]) < 300 for dot in dots)


def test_a_larger_figure_is_higher_and_further_right() -> None:
    dots = [dot for dot in ET.fromstring(drawn(panels(result())[0])).iter(f"{SVG}circle") if dot.get("r") == "3"]
    corners = [(float(dot.attrib["cx"]), float(dot.attrib["cy"])) for dot in dots[:3]]
    assert corners == sorted(corners)
    assert [y for _, y in corners] == sorted((y for _, y in corners), reverse=True)
    assert corners[1][0] - corners[0][0] == pytest.approx(corners[2][0] - corners[1][0], abs=0.2)  # 4, 16, 64


def test_the_page_needs_nothing_from_outside_and_escapes(tmp_path: Path) -> None:
    write(tmp_path / "x.html", result(), ["a <server>"], CELLS)
    page = (tmp_path / "x.html").read_text()
    assert page.count("<svg") == 4 and "<td>&lt;1</td>" in page and "&lt;b&gt;" in page
    assert "<b>" not in page and "<script" not in page
    assert set(re.findall(r"\w+://[^\s\"<]+", page)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"\b(src|href)=", page)


def test_png_is_one(tmp_path: Path) -> None:
    write(tmp_path / "x.png", result(), ["a <server>"], CELLS)
    data = (tmp_path / "x.png").read_bytes()
    assert data.startswith(b"\x89PNG\r\n") and len(data) > 10_000


@pytest.mark.parametrize(("largest", "step"), [(1.0, 0.2), (5.9, 1.0), (7.0, 2.0), (450.0, 100.0), (0.03, 0.005)])
def test_steps_are_round(largest: float, step: float) -> None:
    assert nice_step(largest) == pytest.approx(step)
