"""Buckets and accounts on a clock that the test sets; against a model that remembers everything."""

from dataclasses import dataclass, field
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.http.ratelimit import Account, Accounts, Bucket, RateLimits, Refusal, Visit, duration

NOW = 1000.0


@dataclass
class Meter:
    used_tokens: int = 0


@dataclass
class Ledger:
    """The obvious twin of a bucket: exact, and walks through all that ever happened."""

    limit: int
    events: list[tuple[Fraction, int]] = field(default_factory=list)

    def spent(self, now: Fraction) -> Fraction:
        spent, at = Fraction(0), now
        for number, (when, amount) in enumerate(self.events):
            before = self.events[number - 1][0] if number else when
            spent = max(Fraction(0), spent - (when - before) * self.limit / 60) + amount
            at = when
        return max(Fraction(0), spent - (now - at) * self.limit / 60)


def enter(account: Account, now: float = NOW, meter: Meter | None = None) -> Visit | Refusal:
    return account.enter(meter or Meter(), now)


def refusal(account: Account, now: float = NOW) -> Refusal:
    refused = enter(account, now)
    assert isinstance(refused, Refusal)
    return refused


def visit(account: Account, now: float = NOW, meter: Meter | None = None) -> Visit:
    entered = enter(account, now, meter)
    assert isinstance(entered, Visit)
    return entered


steps = st.lists(st.tuples(st.integers(0, 90_000), st.integers(0, 300)), max_size=30)


@settings(deadline=None)
@given(limit=st.integers(1, 1000), steps=steps)
def test_a_bucket_is_the_ledger_without_its_memory(limit: int, steps: list[tuple[int, int]]) -> None:
    bucket, ledger, ms = Bucket(limit, 0.0), Ledger(limit), 0
    for pause_ms, amount in steps:
        ms += pause_ms
        bucket.forgive(ms / 1000)
        bucket.spent += amount
        ledger.events.append((Fraction(ms, 1000), amount))
        assert bucket.spent == pytest.approx(float(ledger.spent(Fraction(ms, 1000))), abs=1e-6)


@settings(deadline=None)
@given(limit=st.integers(1, 100_000), steps=steps)
def test_who_waits_as_long_as_told_is_let_in_and_no_earlier(limit: int, steps: list[tuple[int, int]]) -> None:
    account, now = Account(RateLimits(rpm=limit), NOW), NOW
    for pause_ms, num_requests in steps:
        now += pause_ms / 1000
        for _ in range(num_requests):
            if isinstance(refused := enter(account, now), Refusal):
                assert refused.wait_s is not None and refused.wait_s > 0
                early = now + refused.wait_s * 0.99 - 1e-4 * 60 / limit
                if early > now:
                    assert isinstance(enter(account, early), Refusal)
                    now = early
                now += refused.wait_s
                assert isinstance(enter(account, now), Visit)


@settings(deadline=None)
@given(limit=st.integers(1, 60), arrivals_ms=st.lists(st.integers(0, 5_000), min_size=1, max_size=200))
def test_never_more_than_twice_the_limit_in_any_minute(limit: int, arrivals_ms: list[int]) -> None:
    account, at_ms, admitted = Account(RateLimits(rpm=limit), 0.0), 0, []
    for pause_ms in arrivals_ms:
        at_ms += pause_ms
        if isinstance(enter(account, at_ms / 1000), Visit):
            admitted.append(at_ms)
    for start in admitted:
        assert sum(start <= each < start + 60_000 for each in admitted) <= 2 * limit


def test_requests_are_refused_beyond_the_limit_and_come_back_one_by_one() -> None:
    account = Account(RateLimits(rpm=60), NOW)
    for _ in range(60):
        visit(account)
    assert refusal(account) == Refusal("requests", 60, 1.0)
    visit(account, NOW + 1)
    assert refusal(account, NOW + 1).wait_s == pytest.approx(1)


def test_a_refused_request_costs_nothing() -> None:
    account = Account(RateLimits(rpm=1), NOW)
    visit(account)
    assert [refusal(account).wait_s for _ in range(3)] == [60.0] * 3


def test_tokens_are_charged_while_a_request_runs() -> None:
    account, meter = Account(RateLimits(tpm=100), NOW), Meter()
    visit(account, meter=meter)
    assert account.headers(NOW)["x-ratelimit-remaining-tokens"] == "100"
    meter.used_tokens = 40
    assert account.headers(NOW)["x-ratelimit-remaining-tokens"] == "60"
    meter.used_tokens = 100
    assert refusal(account) == Refusal("tokens", 100, pytest.approx(0.6))


def test_a_debt_is_waited_off() -> None:
    account, meter = Account(RateLimits(tpm=100), NOW), Meter()
    first = visit(account, meter=meter)
    meter.used_tokens = 1100
    account.leave(first, NOW)
    assert refusal(account).wait_s == pytest.approx(600.6)
    assert account.headers(NOW)["x-ratelimit-remaining-tokens"] == "0"
    assert account.headers(NOW)["x-ratelimit-reset-tokens"] == "11m0s"
    visit(account, NOW + 600.6)


def test_what_got_nothing_gives_its_tokens_back_but_counts_as_a_request() -> None:
    account, meter = Account(RateLimits(rpm=10, tpm=100), NOW), Meter()
    first = visit(account, meter=meter)
    meter.used_tokens = 50
    account.leave(first, NOW, free=True)
    assert account.headers(NOW) == {
        "x-ratelimit-limit-requests": "10",
        "x-ratelimit-remaining-requests": "9",
        "x-ratelimit-reset-requests": "6s",
        "x-ratelimit-limit-tokens": "100",
        "x-ratelimit-remaining-tokens": "100",
        "x-ratelimit-reset-tokens": "0s",
    }


def test_places_are_free_again_when_requests_end() -> None:
    account = Account(RateLimits(concurrency=2), NOW)
    first, _ = visit(account), visit(account)
    assert refusal(account) == Refusal("concurrency", 2, None)
    account.leave(first, NOW)
    visit(account)
    assert account.headers(NOW) == {}


def test_the_longest_wait_is_told() -> None:
    account, meter = Account(RateLimits(rpm=1, tpm=10, concurrency=1), NOW), Meter(used_tokens=15)
    visit(account, meter=meter)
    assert refusal(account) == Refusal("requests", 1, 60.0)
    meter.used_tokens = 30
    assert refusal(account) == Refusal("tokens", 10, pytest.approx(126))


def test_a_clock_that_stands_or_goes_back_forgives_nothing() -> None:
    bucket = Bucket(60, NOW, spent=10.0)
    bucket.forgive(NOW - 5)
    bucket.forgive(NOW)
    assert bucket.spent == 10.0


def test_clients_are_forgotten_once_nothing_is_held_against_them() -> None:
    accounts, limits = Accounts(), RateLimits(rpm=60, concurrency=9)
    stays = accounts.of(b"stays", limits, NOW)
    visit(stays)
    goes = accounts.of(b"goes", limits, NOW)
    goes.leave(visit(goes), NOW)
    accounts.of(b"new", limits, NOW)
    assert len(accounts) == 3
    accounts.of(b"newer", limits, NOW + 60)
    assert len(accounts) == 2 and accounts.of(b"stays", limits, NOW + 60) is stays


def test_new_limits_begin_a_new_account() -> None:
    accounts = Accounts()
    visit(accounts.of(b"a", RateLimits(rpm=1), NOW))
    assert isinstance(enter(accounts.of(b"a", RateLimits(rpm=1), NOW)), Refusal)
    assert isinstance(enter(accounts.of(b"a", RateLimits(rpm=2), NOW)), Visit)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.0004, "1ms"),
        (0.02, "20ms"),
        (1, "1s"),
        (1.5, "1.5s"),
        (59.9996, "1m0s"),
        (360, "6m0s"),
        (3600, "1h0m0s"),
        (3661.25, "1h1m1.25s"),
    ],
)
def test_durations_are_as_go_writes_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def exchanged(gateways: list[Accounts], now: float) -> None:
    """All tell all what they do not know yet."""
    for number, each in enumerate(gateways):
        told = each.take_spent(now)
        for other in gateways:
            if other is not each:
                other.charge(number, told, now)


def test_what_is_spent_at_one_gateway_is_spent_at_all() -> None:
    limits, client = RateLimits(rpm=10, tpm=100, concurrency=2), b"key"
    here, there = gateways = [Accounts(), Accounts()]
    meter = Meter()
    open_here = visit(here.of(client, limits, NOW), meter=meter)
    meter.used_tokens = 30
    exchanged(gateways, NOW)
    shown = there.of(client, limits, NOW).headers(NOW)
    assert (shown["x-ratelimit-remaining-requests"], shown["x-ratelimit-remaining-tokens"]) == ("9", "70")
    visit(there.of(client, limits, NOW))
    assert refusal(there.of(client, limits, NOW)).kind == "concurrency"  # one is open here
    here.of(client, limits, NOW).leave(open_here, NOW)
    exchanged(gateways, NOW)
    visit(there.of(client, limits, NOW))
    exchanged(gateways, NOW)
    assert refusal(here.of(client, limits, NOW)).kind == "concurrency"  # two are open there
    here.lose(1)  # and went with that gateway
    visit(here.of(client, limits, NOW))


def test_gateways_agree_on_what_is_left() -> None:
    limits, client = RateLimits(rpm=60), b"key"
    gateways = [Accounts() for _ in range(4)]
    for number in range(20):
        gateways[number % 3].of(client, limits, NOW).enter(Meter(), NOW)
        if number % 5 == 0:
            exchanged(gateways, NOW)
    exchanged(gateways, NOW)
    exchanged(gateways, NOW)  # nothing twice
    left = {each.of(client, limits, NOW).headers(NOW)["x-ratelimit-remaining-requests"] for each in gateways}
    assert left == {"40"}


def test_an_account_that_others_count_open_requests_of_is_not_forgotten() -> None:
    limits = RateLimits(concurrency=1)
    here, there = gateways = [Accounts(), Accounts()]
    opened = visit(here.of(b"key", limits, NOW))
    exchanged(gateways, NOW)
    here.of(b"key", limits, NOW).leave(opened, NOW)
    here.of(b"another", limits, NOW)  # forgets the blank ones
    exchanged(gateways, NOW)
    visit(there.of(b"key", limits, NOW))


def test_a_gateway_that_does_not_know_new_limits_yet_takes_nothing_back() -> None:
    old, new, client = RateLimits(rpm=10), RateLimits(rpm=5), b"key"
    here, there = Accounts(), Accounts()
    visit(here.of(client, old, NOW))
    visit(there.of(client, new, NOW))
    visit(there.of(client, new, NOW))
    exchanged([here, there], NOW)
    assert there.of(client, new, NOW).headers(NOW)["x-ratelimit-remaining-requests"] == "2"
