"""Moments that are drawn, and traces."""

import random
import statistics
from itertools import pairwise
from pathlib import Path

import pytest

from bench.arrivals import Entry, Open, TraceError, read_trace


def gaps(load: Open, num: int = 20_001, seed: int = 1) -> list[float]:
    return [after - before for before, after in pairwise(load.moments(num, random.Random(seed)))]


def test_the_same_seed_gives_the_same_moments() -> None:
    assert gaps(Open(5.0), 100) == gaps(Open(5.0), 100)
    assert gaps(Open(5.0), 100) != gaps(Open(5.0), 100, seed=2)


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gaps_have_the_mean_and_the_variance_that_were_asked_for(burstiness: float) -> None:
    drawn = gaps(Open(5.0, burstiness))
    assert statistics.mean(drawn) == pytest.approx(0.2, rel=0.05)
    assert statistics.variance(drawn) == pytest.approx(0.04 * burstiness, rel=0.1)


def test_poisson_gaps_are_exponential() -> None:
    drawn = gaps(Open(1.0))
    assert sum(gap > 1 for gap in drawn) / len(drawn) == pytest.approx(0.368, abs=0.01)  # 1 / e
    assert sum(gap > 2 for gap in drawn) / len(drawn) == pytest.approx(0.135, abs=0.01)


def test_even_gaps() -> None:
    assert gaps(Open(4.0, burstiness=0.0), 10) == [0.25] * 9


def test_bursts_come_at_one_moment_and_keep_the_rate() -> None:
    drawn = gaps(Open(8.0, burst=4), 20_000)
    assert all(gap == 0 for place, gap in enumerate(drawn, 1) if place % 4)
    assert statistics.mean(drawn) == pytest.approx(1 / 8, rel=0.05)


def test_a_trace_is_read_by_time_from_zero(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text(
        '{"at": 12.5, "input_len": 3, "output_len": 4}\n\n{"at": 10, "input_len": 1, "output_len": 2, "note": "x"}\n'
    )
    assert read_trace(file) == (Entry(0.0, 1, 2), Entry(2.5, 3, 4))


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "line 2: not JSON"),
        ("[1]", "line 2: not an object"),
        ('{"at": -1, "input_len": 1, "output_len": 1}', '"at" must be seconds'),
        ('{"at": Infinity, "input_len": 1, "output_len": 1}', '"at" must be seconds'),
        ('{"at": true, "input_len": 1, "output_len": 1}', '"at" must be seconds'),
        ('{"at": 0, "output_len": 1}', '"input_len" must be'),
        ('{"at": 0, "input_len": 1, "output_len": 0}', '"output_len" must be'),
        ('{"at": 0, "input_len": 1.5, "output_len": 1}', '"input_len" must be'),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, told: str) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text('{"at": 0, "input_len": 1, "output_len": 1}\n' + line)
    with pytest.raises(TraceError, match=told):
        read_trace(file)


def test_a_trace_that_is_not_there_or_empty(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(TraceError, match="no request"):
        read_trace(tmp_path / "empty")
    with pytest.raises(TraceError, match="No such file"):
        read_trace(tmp_path / "none")
