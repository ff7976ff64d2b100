"""A benchmark of hours may end early, and go on from its whole rounds."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cpu_kept import Another, Kept, kept, part_of
from benchmarks.cpu_table import Visit
from benchmarks.load import Figures

CASES = ["c1", "c8"]


def head(ours: str = "abc", **machine: Any) -> dict[str, Any]:
    about = {"processor": "P", "features": ["avx2"], "cores": 2, "load_before": 0.5, "memory_gib": 23.5}
    return {"date": f"day of {ours}", "machine": {**about, **machine}, "versions": {"headrace": ours, "llama": "1"}}


def visit(turn: int, server: str, cases: list[str] = CASES) -> Visit:
    figures = Figures(1, 0, "", 2, 3, 4, 5.0, 6.0, 7.0, 8.0, {"p50": 9.0}, {})
    return Visit(turn, server, 3.0, runs=dict.fromkeys(cases, figures))


def file(folder: Path, visits: list[Visit], ours: str = "abc", **more: Any) -> Path:
    path = folder / "x.json"
    path.write_text(json.dumps({**head(ours), "visits": [asdict(each) for each in visits], **more}))
    return path


BOTH = [visit(1, "headrace"), visit(1, "llama"), visit(2, "llama"), visit(2, "headrace")]


def test_whole_rounds_are_kept_as_they_were(tmp_path: Path) -> None:
    got = kept(file(tmp_path, [*BOTH, visit(3, "headrace")]), head("def"), CASES)
    assert got == Kept(BOTH, [{"date": "day of abc", "headrace": "abc", "load_before": 0.5, "rounds": 2}])
    assert got.rounds == 2


def test_parts_add_up_to_the_rounds(tmp_path: Path) -> None:
    third = [visit(3, "headrace"), visit(3, "llama")]
    parts = [{**part_of(head("abc")), "rounds": 2}, {**part_of(head("def")), "rounds": 2}]  # its fourth is not whole
    got = kept(file(tmp_path, [*BOTH, *third, visit(4, "llama")], "def", parts=parts), head("ghi"), CASES)
    assert [(part["headrace"], part["rounds"]) for part in got.parts] == [("abc", 2), ("def", 1)]
    assert got.rounds == 3


def test_without_a_file_or_a_whole_round_nothing_is_kept(tmp_path: Path) -> None:
    assert kept(tmp_path / "none.json", head(), CASES) == Kept()
    assert kept(file(tmp_path, BOTH[:1]), head(), CASES) == Kept()


def test_a_start_that_failed_is_part_of_its_round(tmp_path: Path) -> None:
    visits = [visit(1, "headrace"), Visit(1, "llama", error="not ready")]
    assert kept(file(tmp_path, visits), head(), CASES).visits == visits


@pytest.mark.parametrize(
    ("here", "cases", "told"),
    [
        (head(processor="Q"), CASES, "processor P"),
        (head(features=["avx2", "avx512f"]), CASES, "features"),
        (head(cores=4), CASES, "cores 2"),
        ({**head(), "versions": {"headrace": "abc", "llama": "2"}}, CASES, "servers"),
        ({**head(), "versions": {"headrace": "abc", "llama": "1", "vllm": "1"}}, CASES, "servers"),
        (head(), ["c1", "prefix"], "other workloads"),
    ],
)
def test_what_cannot_be_compared_is_not_gone_on_from(
    tmp_path: Path, here: dict[str, Any], cases: list[str], told: str
) -> None:
    with pytest.raises(Another, match=told):
        kept(file(tmp_path, BOTH), here, cases)
