"""Points and drawings of a result."""

import xml.etree.ElementTree as ET
from typing import Any

import pytest

from benchmarks.cpu_plots import nice_step, plots, points


def run(speed: float, itl: float = 10.0, failed: int = 0) -> dict[str, Any]:
    return {"output_tok_per_s": speed, "failed": failed, "itl_ms": {"p50": itl} if speed else {}}


RESULT: dict[str, Any] = {
    "machine": {"processor": "A & B", "cores": 2},
    "visits": [
        {"server": "headrace", "runs": {"streams-1": run(40.0), "streams-16": run(300.0), "context-512": run(9.0)}},
        {"server": "headrace", "runs": {"streams-1": run(60.0), "c8": run(100.0)}},
        {"server": "llama", "runs": {"streams-1": run(90.0), "context-512": run(0.0, failed=3)}},
    ],
}


def test_points_are_medians_where_a_server_answered() -> None:
    assert points(RESULT["visits"], "streams-", "output_tok_per_s") == {
        "headrace": [(1, 50.0), (16, 300.0)],
        "llama": [(1, 90.0)],
    }
    assert points(RESULT["visits"], "context-", "itl_ms", "p50") == {"headrace": [(512, 10.0)]}


def test_drawings_are_xml_with_a_line_and_dots_for_each_server() -> None:
    drawn = plots(RESULT)
    assert set(drawn) == {"streams.svg", "contexts.svg"}
    root = ET.fromstring(drawn["streams.svg"].svg())
    svg = "{http://www.w3.org/2000/svg}"
    assert len(root.findall(f"{svg}circle")) == 3 + 2  # dots, and one beside each name
    assert {"headrace", "llama"} <= {text.text for text in root.findall(f"{svg}text")}


def test_a_result_without_sweeps_has_nothing_to_draw() -> None:
    assert plots({**RESULT, "visits": [{"server": "headrace", "runs": {"c8": run(100.0)}}]}) == {}


def test_several_results_are_drawn_as_one() -> None:
    vllm = {**RESULT, "visits": [{"server": "vllm", "runs": {"streams-1": run(50.0)}}]}
    assert set(plots(RESULT, vllm)["streams.svg"].series) == {"headrace", "llama", "vllm"}


@pytest.mark.parametrize(("largest", "step"), [(0.9, 0.2), (7.0, 2.0), (12.0, 2.0), (100.0, 20.0), (640.0, 200.0)])
def test_steps_are_round(largest: float, step: float) -> None:
    assert nice_step(largest) == pytest.approx(step)
