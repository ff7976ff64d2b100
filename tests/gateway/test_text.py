"""Utf8Stream and StopMatcher: the cuts of the stream never show."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise, product
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.answers.text import StopMatcher, Utf8Stream

Whole = TypeVar("Whole", str, bytes)
CUTS = st.lists(st.integers(0, 40), max_size=8)
# Lead and continuation bytes far more often than chance would bring them together.
UTF8_BYTES = st.lists(
    st.one_of(
        st.sampled_from(
            [b"a", b"\x80", b"\xbf", b"\xc3", b"\xc0", b"\xe2", b"\xe0", b"\xed\xa0", b"\xf0\x9f", b"\xf4"]
        ),
        st.text(max_size=2).map(lambda text: text.encode()),
        st.binary(max_size=3),
    ),
    max_size=12,
).map(b"".join)
LETTERS = st.text("ab", max_size=30)
STOPS = st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=4)


def pieces(whole: Whole, cuts: list[int]) -> Iterator[Whole]:
    edges = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    return (whole[start:end] for start, end in pairwise(edges))


def through(stops: list[str], parts: Iterator[str] | list[str]) -> tuple[str, str | None]:
    matcher, sent, found = StopMatcher(stops), "", None
    for part in parts:
        text, stop = matcher.push(part)
        sent, found = sent + text, found or stop
    return sent + matcher.flush(), found


def first_completed(stops: list[str], text: str) -> tuple[str, str | None]:
    """The obvious twin: try every end, the longest stop string first."""
    for end in range(1, len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return text[: end - len(stop)], stop
    return text, None


@given(UTF8_BYTES, CUTS)
def test_utf8_in_pieces_is_utf8_at_once(data: bytes, cuts: list[int]) -> None:
    stream = Utf8Stream()
    text = "".join(stream.push(piece) for piece in pieces(data, cuts)) + stream.flush()
    assert text == data.decode("utf-8", "replace")


def test_utf8_byte_by_byte_over_all_short_sequences_of_edge_bytes() -> None:
    edge_bytes = [0x41, 0x7F, 0x80, 0x8F, 0x9F, 0xA0, 0xBF, 0xC1, 0xC2, 0xDF, 0xE0, 0xED, 0xEF, 0xF0, 0xF4, 0xF5]
    for values in product(edge_bytes, repeat=4):
        stream = Utf8Stream()
        text = "".join(stream.push(bytes([value])) for value in values) + stream.flush()
        assert text == bytes(values).decode("utf-8", "replace"), values


def test_utf8_gives_a_character_when_its_last_byte_came_and_not_before() -> None:
    stream = Utf8Stream()
    assert [stream.push(bytes([value])) for value in "é🙂".encode()] == ["", "é", "", "", "", "🙂"]


def test_utf8_flush_replaces_a_cut_character_once() -> None:
    stream = Utf8Stream()
    assert stream.push("ok🙂".encode()[:-1]) == "ok"
    assert stream.flush() == "\ufffd"
    assert stream.flush() == ""


@given(STOPS, LETTERS, CUTS)
def test_stop_is_found_however_the_text_is_cut(stops: list[str], text: str, cuts: list[int]) -> None:
    assert through(stops, pieces(text, cuts)) == first_completed(stops, text)


@given(STOPS, LETTERS)
def test_no_more_is_held_back_than_could_begin_a_stop_string(stops: list[str], text: str) -> None:
    matcher, sent = StopMatcher(stops), ""
    for seen, character in enumerate(text, start=1):
        now, stop = matcher.push(character)
        sent += now
        if stop is not None:
            return
        held = text[len(sent) : seen]
        suffixes = (text[start:seen] for start in range(seen + 1))
        assert held == next(suffix for suffix in suffixes if any(s.startswith(suffix) for s in stops))


def test_stop_of_one_push_leaves_the_text_before_it() -> None:
    assert StopMatcher(["\n\n", "END"]).push("one END two\n\n") == ("one ", "END")


def test_longer_stop_wins_where_both_end_together() -> None:
    assert through(["b", "ab"], ["a", "b"]) == ("", "ab")


def test_after_a_match_nothing_more_comes() -> None:
    matcher = StopMatcher(["x"])
    assert matcher.push("ax") == ("a", "x")
    assert matcher.push("bx") == ("", None)
    assert matcher.flush() == ""


def test_without_stops_text_passes_at_once() -> None:
    assert StopMatcher([]).push("anything") == ("anything", None)


def test_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="empty stop"):
        StopMatcher([""])
