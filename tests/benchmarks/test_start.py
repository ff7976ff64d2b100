"""Starts of several checkouts, in turn."""

from benchmarks.start import BEGINS, READY, Start, ratios, table

STARTS = [
    Start(1, "other", 6.0, 5.0, {"importing torch": 1.0, "loading weights": 3.0}),
    Start(1, "ours", 3.0, 2.0, {"importing torch": 0.5}),
    Start(2, "ours", 4.0, 2.0, {"importing torch": 0.7}),
    Start(2, "other", 20.0, 5.0, {"importing torch": 2.0, "loading weights": 5.0}),
]


def test_ratios_are_of_starts_in_the_same_round() -> None:
    assert ratios(STARTS, "ours") == {"other": 3.5}
    assert ratios(STARTS[1:3], "ours") == {}


def test_phases_stand_where_they_began_in_the_middle_start() -> None:
    assert table(STARTS).splitlines()[:3] == [
        "other: ready after 13.00 s (6.00 to 20.00), 5.00 s of processors",
        "      1.50  importing torch",
        "      4.00  loading weights",
    ]


def test_what_the_server_says_is_understood() -> None:
    assert READY.fullmatch("headrace 0.1.0 is ready")
    for line in ("loading weights ...", "loading weights (93.4 MiB) ..."):
        found = BEGINS.fullmatch(line)
        assert found is not None and found[1] == "loading weights"
