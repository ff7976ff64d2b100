"""Messages of one line and of several, and what is remembered of them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from chat.history import MAX_ENTRIES, MAX_ENTRY_CHARS, History
from chat.keyboard import MORE, PROMPT, Dropped, several


def typed(*lines: str | type[BaseException]) -> Callable[[str], str]:
    left = list(lines)

    def read(prompt: str) -> str:
        assert prompt == (PROMPT if len(left) == len(lines) else MORE)
        line = left.pop(0)
        if isinstance(line, str):
            return line
        raise line

    return read


def test_lines_become_a_message() -> None:
    assert several(typed("one line")) == "one line"
    assert several(typed('"""one', "", '  two """')) == "one\n\n  two "
    assert several(typed('"""', "one", "two", '"""')) == "\none\ntwo\n"
    assert several(typed('"""all"""')) == "all"
    assert several(typed('say """x"""')) == 'say """x"""'


@pytest.mark.parametrize("key", [KeyboardInterrupt, EOFError])
def test_several_lines_can_be_dropped(key: type[BaseException]) -> None:
    with pytest.raises(Dropped):
        several(typed('"""one', "two", key))


def test_history_outlives_the_program_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "state" / "history"
    history = History(path)
    for text in ("one", "two\nlines", "two\nlines", "", "x" * (MAX_ENTRY_CHARS + 1), "ünï"):
        history.add(text)
    assert History(path).entries == ["one", "two\nlines", "ünï"]
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_history_is_bounded_and_reads_what_was_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "history"
    path.write_text("".join(f'"{number}"\n' for number in range(2 * MAX_ENTRIES + 1)) + '"half')
    history = History(path)
    assert (len(history.entries), history.entries[-1]) == (MAX_ENTRIES - 1, str(2 * MAX_ENTRIES))
    assert len(path.read_bytes().splitlines()) == MAX_ENTRIES - 1


def test_history_that_cannot_be_kept_is_of_this_time(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (None, tmp_path / "file" / "history"):
        history = History(path)
        history.add("one")
        history.add("two")
        assert history.entries == ["one", "two"]
