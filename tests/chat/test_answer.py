"""An answer while it comes, and what is seen of it."""

import io
import os
import pty
import signal
import termios
from collections.abc import Generator

import pytest

from chat.answer import Taken, receive
from chat.client import AskError, Piece, PromptDetails, Usage
from chat.keyboard import unechoed
from chat.screen import Plain, Progress, Screen, clean


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def coming(clock: Clock, *pieces: Piece) -> Generator[Piece, None, None]:
    """One a second."""
    for piece in pieces:
        clock.now += 1.0
        yield piece


def test_the_text_and_what_it_took() -> None:
    clock, out = Clock(), io.StringIO()
    usage = Usage(20, 3, PromptDetails(16))
    pieces = (Piece(), Piece("Hel"), Piece("lo"), Piece(finish="stop"), Piece(usage=usage))
    answer = receive(coming(clock, *pieces), Plain(out), clock)
    assert (answer.text, answer.finish, out.getvalue()) == ("Hello", "stop", "Hello\n")
    assert answer.taken == Taken(20, 16, 3, ttft_s=2.0, decode_s=1.0)


def test_without_usage_pieces_are_counted() -> None:
    clock = Clock()
    answer = receive(coming(clock, Piece("a"), Piece("b", finish="length")), Plain(io.StringIO()), clock)
    assert answer.taken == Taken(0, 0, 2, ttft_s=1.0, decode_s=1.0, is_counted_here=True)


def test_ctrl_c_stops_it_and_keeps_what_came() -> None:
    closed = False

    def endless() -> Generator[Piece, None, None]:
        nonlocal closed
        try:
            yield Piece("one ")
            signal.raise_signal(signal.SIGINT)
            yield Piece("two")
        finally:
            closed = True

    out = io.StringIO()
    answer = receive(endless(), Plain(out))
    assert (answer.text, answer.finish, out.getvalue()) == ("one ", "", "one \n")
    assert closed


def test_a_failure_ends_the_line() -> None:
    def failing() -> Generator[Piece, None, None]:
        yield Piece("one")
        raise AskError("gone")

    out = io.StringIO()
    with pytest.raises(AskError):
        receive(failing(), Plain(out))
    assert out.getvalue() == "one\n"


def test_a_model_writes_no_control_codes() -> None:
    assert clean("a\x1b[31mb\x07\x00\r\x7f\x9b2Jc\td\né") == "a[31mb2Jc\td\né"
    out, notes = io.StringIO(), io.StringIO()
    screen = Screen(out, notes, is_styled=False)
    screen.text("\x1b]0;title\x07x")
    screen.end()
    screen.error("\x1b[2Jno")
    assert (out.getvalue(), notes.getvalue()) == ("]0;titlex\n", "[2Jno\n")


def test_reasoning_is_beside_the_answer() -> None:
    pieces = (Piece(reasoning="Hm"), Piece(reasoning="."), Piece("\n\nYes"), Piece(finish="stop"))
    out, notes = io.StringIO(), io.StringIO()
    answer = receive(coming(Clock(), *pieces), Screen(out, notes, is_styled=True))
    assert (out.getvalue(), notes.getvalue()) == ("Yes\n", "\x1b[2mHm\x1b[0m\x1b[2m.\x1b[0m\n\n")
    assert answer.text == "\n\nYes"
    out = io.StringIO()
    receive(coming(Clock(), *pieces), Plain(out))
    assert out.getvalue() == "\n\nYes\n"


def test_progress_leaves_nothing() -> None:
    out = io.StringIO()
    progress = Progress(out, is_shown=True)
    progress.show("weights ... 1 s")
    progress.close()
    progress.close()
    assert out.getvalue() == "\r\x1b[Kweights ... 1 s\r\x1b[K"
    hidden = io.StringIO()
    Progress(hidden, is_shown=False).show("weights")
    assert hidden.getvalue() == ""


def test_typing_does_not_echo_into_an_answer() -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb"), os.fdopen(theirs) as terminal:
        before = termios.tcgetattr(terminal)
        with pytest.raises(KeyError), unechoed(terminal):
            assert not termios.tcgetattr(terminal)[3] & termios.ECHO
            raise KeyError
        assert termios.tcgetattr(terminal) == before
