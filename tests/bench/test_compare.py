"""Ratios of rounds whose figures are known."""

import random
from array import array

import numpy as np
import pytest

from bench.answers import Seen
from bench.compare import Ratio, _Waits, ratios
from bench.measure import SLO, Round, Spread


def rounds(seed: int, factor: float = 1.0, noise: float = 0.1, num: int = 3) -> list[Round]:
    """Waits around 0.1 s times `factor`."""
    rng = random.Random(seed)

    def wait() -> float:
        return 0.1 * factor * rng.lognormvariate(0, noise)

    def seen() -> Seen:
        return Seen(None, wait(), wait(), wait(), array("d", [wait() for _ in range(5)]), 5, 0, 10)

    return [
        Round([seen() for _ in range(40)], wall_s=factor * rng.lognormvariate(0, noise), client_cpu_s=0)
        for _ in range(num)
    ]


def by_name(found: list[Ratio]) -> dict[str, Ratio]:
    return {ratio.name: ratio for ratio in found}


def test_without_noise_the_interval_is_the_ratio() -> None:
    found = by_name(ratios(rounds(1, noise=0), rounds(2, 2.0, noise=0), SLO(ttft=500), 1))
    assert found["ttft_p99"] == Ratio("ttft_p99", 2.0, 2.0, 2.0)
    assert found["itl_p50"] == Ratio("itl_p50", 2.0, 2.0, 2.0)
    assert found["output_tok_per_s"] == Ratio("output_tok_per_s", 0.5, 0.5, 0.5)
    assert found["good_requests_per_s"].ratio == 0.5
    assert len(found) == 12


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    held = 0
    for seed in range(10):
        tpot = by_name(ratios(rounds(seed), rounds(seed + 100, 1.5), SLO(), seed))["tpot_p50"]
        assert tpot.low is not None and tpot.high is not None and tpot.ratio is not None
        assert tpot.low <= tpot.ratio <= tpot.high
        assert 0.02 < tpot.high - tpot.low < 0.3
        held += tpot.low <= 1.5 <= tpot.high
    assert held >= 8


def test_more_rounds_make_intervals_narrower() -> None:
    widths = []
    for num in (3, 24):
        e2e = by_name(ratios(rounds(1, num=num), rounds(2, num=num), SLO(), 1))["e2e_p50"]
        assert e2e.low is not None and e2e.high is not None
        widths.append(e2e.high - e2e.low)
    assert widths[1] < widths[0] / 2


def test_a_seed_gives_the_same_intervals() -> None:
    assert ratios(rounds(1), rounds(2), SLO(), 5) == ratios(rounds(1), rounds(2), SLO(), 5)
    assert ratios(rounds(1), rounds(2), SLO(), 5) != ratios(rounds(1), rounds(2), SLO(), 6)


def test_a_server_that_answered_nothing_has_no_ratios() -> None:
    nothing = [Round([], 1.0, 0.0)] * 3
    assert {ratio.ratio for ratio in ratios(rounds(1), nothing, SLO(), 1)} == {None}
    assert {ratio.ratio for ratio in ratios(nothing, rounds(1), SLO(), 1)} == {None}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.99])
def test_a_weighted_quantile_is_that_of_the_repeated_waits(seed: int, quantile: float) -> None:
    rng = np.random.default_rng(seed)
    waits = [rng.random(rng.integers(0, 6)).tolist() for _ in range(30)]
    times = rng.integers(0, 4, size=30)
    repeated = [wait for each, num in zip(waits, times, strict=True) for wait in each * int(num)]
    spread = Spread.of(repeated)
    expected = {0.5: spread.p50, 0.9: spread.p90, 0.99: spread.p99}[quantile]
    assert _Waits.of(waits).quantile(times, quantile) * 1e3 == pytest.approx(expected, abs=1e-3)
