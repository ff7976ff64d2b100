import pytest

from scheduler.stats import MAX_RETRY_S, MIN_RETRY_S, TokenRate


def test_without_history_come_back_soon() -> None:
    assert TokenRate().retry_after_s(10**6) == MIN_RETRY_S


def test_retry_after_is_queue_over_rate() -> None:
    rate = TokenRate()
    rate.add(100, started=0.0, ended=1.0)
    assert rate.retry_after_s(500) == pytest.approx(5.0)


@pytest.mark.parametrize(("queued", "seconds"), [(0, MIN_RETRY_S), (10, MIN_RETRY_S), (10**9, MAX_RETRY_S)])
def test_retry_after_is_clamped(queued: int, seconds: float) -> None:
    rate = TokenRate()
    rate.add(100, started=0.0, ended=1.0)
    assert rate.retry_after_s(queued) == seconds


def test_idle_time_does_not_slow_the_rate() -> None:
    rate = TokenRate()
    rate.add(100, started=0.0, ended=1.0)
    rate.add(100, started=1000.0, ended=1001.0)
    assert rate.retry_after_s(500) == pytest.approx(5.0)


def test_time_of_overlapping_steps_counts_once() -> None:
    rate = TokenRate()
    rate.add(100, started=0.0, ended=1.0)
    rate.add(100, started=0.5, ended=2.0)
    assert rate.retry_after_s(500) == pytest.approx(5.0)


def test_the_recent_counts_more() -> None:
    rate = TokenRate()
    rate.add(100_000, started=0.0, ended=10.0)
    for second in range(10, 110):
        rate.add(100, float(second), second + 1.0)
    assert 4.0 < rate.retry_after_s(500) < 5.0
