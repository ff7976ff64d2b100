from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.agreement import AGAIN, FIRST, OURS, Generators, level, ratios, value

GENERATOR = """
import json, sys
told = dict(zip(sys.argv[1::2], sys.argv[2::2]))
print("a line before")
print(json.dumps({"output_tok_per_s": float(told["--concurrency"]) * float(told["--requests"]), **told}))
"""


def test_ratios_are_of_medians_over_the_rounds() -> None:
    def speeds(*each: float) -> list[dict[str, float]]:
        return [{"output_tok_per_s": speed} for speed in each]

    runs = {OURS: speeds(90, 99, 300), FIRST: speeds(100, 100, 50), AGAIN: speeds(110, 120, 110)}
    # theirs: 50 100 100 110 110 120
    assert ratios(runs, "output_tok_per_s") == (pytest.approx(99 / 105), pytest.approx(110 / 100))


def test_a_percentile_is_looked_up_by_its_two_names() -> None:
    assert value({"ttft_ms": {"p50": 3, "p99": 4}}, "ttft_ms p99") == 4.0


def test_levels_are_streams_and_requests() -> None:
    assert level("8:160") == (8, 160)


def test_the_other_is_asked_the_same_with_a_seed_of_its_own_in_every_run(tmp_path: Path) -> None:
    other = tmp_path / "load.py"
    other.write_text(GENERATOR)
    generators = Generators(other, "http://host:1", "m", 64)
    first, again = (generators.run(who, 8, 16) for who in (FIRST, AGAIN))
    assert first["output_tok_per_s"] == 8 * 16
    assert (first["--base-url"], first["--model"], first["--output-len"]) == ("http://host:1/v1", "m", "64")
    assert first["--seed"] != again["--seed"]
