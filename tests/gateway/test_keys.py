"""Keys, the file that holds them, and its changes."""

import hashlib
import logging
from pathlib import Path

import pytest

from gateway.http.keys import Keys, KeysError, parse_key, parse_line, read_keys
from gateway.http.ratelimit import RateLimits
from tests.fixtures.fakes import Clock

DIGEST = hashlib.sha256(b"sk-one").hexdigest()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.txt"


def names(keys: Keys, *secrets: str) -> list[str | None]:
    found = [keys.find(secret.encode()) for secret in secrets]
    return [key.name if key else None for key in found]


def test_a_line_has_a_key_a_name_and_limits_of_its_own() -> None:
    key = parse_line("  sk-one name=team-a rpm=60 tpm=100000 concurrency=8  # of spring\r")
    assert key is not None
    assert (key.digest.hex(), key.name, key.rpm, key.tpm, key.concurrency) == (DIGEST, "team-a", 60, 100000, 8)
    assert "sk-one" not in repr(key)


@pytest.mark.parametrize("line", ["", "   ", "# sk-one", "\t# a", "#"])
def test_empty_lines_and_comments_hold_no_key(line: str) -> None:
    assert parse_line(line) is None


def test_a_hashed_key_is_the_same_key() -> None:
    assert parse_key(f"sha256:{DIGEST}") == parse_key("sk-one") == parse_key(f"sha256:{DIGEST.upper()}")


def test_a_key_may_hold_a_hash_sign() -> None:
    assert parse_line("sk#one") == parse_key("sk#one")


def test_a_key_without_a_name_is_known_by_its_hash() -> None:
    assert parse_key("sk-one").name == f"key-{DIGEST[:8]}"


def test_its_own_limits_win_and_zero_is_none() -> None:
    key = parse_line("sk-one rpm=5 tpm=0")
    assert key is not None
    assert key.limits(RateLimits(rpm=1, tpm=2, concurrency=3)) == RateLimits(rpm=5, tpm=0, concurrency=3)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("sha256:12ab", "a hashed key is sha256: and 64 hexadecimal digits"),
        ("schlüssel", "a key is 1 to 1024 visible ASCII characters"),
        ("sk-one sk-two", "word 1 after the key is none of name=, rpm=, tpm=, concurrency=, admin"),
        ("sk-one name=a speed=9", "word 2 after the key is none of name=, rpm=, tpm=, concurrency=, admin"),
        ("sk-one rpm=", "rpm= takes a number from 0 (no limit) to 1000000000000"),
        ("sk-one tpm=-1", "tpm= takes a number from 0 (no limit) to 1000000000000"),
        ("sk-one rpm=1e3", "rpm= takes a number from 0 (no limit) to 1000000000000"),
        ("sk-one rpm=1 rpm=2", "rpm= is there twice"),
        ("sk-one name=a/b", "name= takes 1 to 64 letters, digits and . _ @ -"),
    ],
)
def test_a_mistake_is_named_with_its_line_and_without_the_key(file: Path, line: str, problem: str) -> None:
    file.write_text(f"# keys\n\n{line}\n", encoding="utf-8")
    with pytest.raises(KeysError) as wrong:
        read_keys(file)
    assert str(wrong.value) == f"{file}, line 3: {problem}"
    assert "sk-" not in problem


def test_a_key_may_be_there_only_once(file: Path) -> None:
    file.write_text(f"sk-one\nsk-two\nsha256:{DIGEST} name=b\n")
    with pytest.raises(KeysError, match="line 3: the key of line 1 again"):
        read_keys(file)


def test_the_key_given_by_itself_and_those_of_the_file_open(file: Path) -> None:
    file.write_text("sk-two name=two\nsk-three name=three")
    keys = Keys("sk-one", file, Clock())
    assert names(keys, "sk-one", "sk-two", "sk-three") == [f"key-{DIGEST[:8]}", "two", "three"]
    assert names(keys, "sk-four", "", "sk-one ", "SK-TWO", DIGEST, f"sha256:{DIGEST}") == [None] * 6


@pytest.mark.parametrize("text", [None, "", "# none yet\n"])
def test_no_keys_at_all_is_no_start(file: Path, text: str | None) -> None:
    if text is not None:
        file.write_text(text)
    with pytest.raises(KeysError, match=r"cannot read .*keys.txt: No such file|keys.txt holds no keys"):
        Keys("", file, Clock())


def test_a_changed_file_is_read_within_a_second(file: Path) -> None:
    file.write_text("sk-one name=one")
    clock = Clock(step_s=0)
    keys = Keys("", file, clock)
    file.write_text("sk-second name=two")
    clock.now += 0.9
    assert names(keys, "sk-one", "sk-second") == ["one", None]
    clock.now += 0.1
    assert names(keys, "sk-one", "sk-second") == [None, "two"]


def test_a_file_put_in_its_place_is_noticed(file: Path) -> None:
    file.write_text("sk-one name=one")
    keys = Keys("", file, Clock(step_s=1))
    (other := file.with_suffix(".new")).write_text("sk-two name=two")
    other.replace(file)
    assert names(keys, "sk-one", "sk-two") == [None, "two"]


@pytest.mark.parametrize("text", ["sk-one\nsk-new what=1\n", None])
def test_a_broken_file_changes_nothing_and_is_reported_once(
    file: Path, text: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    file.write_text("sk-one name=one")
    keys = Keys("", file, Clock(step_s=1))
    file.unlink() if text is None else file.write_text(text)
    assert names(keys, "sk-one", "sk-new", "sk-one") == ["one", None, "one"]
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert ("No such file" if text is None else f"{file}, line 2:") in record.getMessage()
    assert "sk-" not in caplog.text
    file.write_text("sk-one name=again")
    assert names(keys, "sk-one") == ["again"]


def test_a_file_emptied_while_serving_lets_nobody_in(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    file.write_text("sk-one")
    keys = Keys("", file, Clock(step_s=1))
    file.write_text("# revoked\n")
    assert names(keys, "sk-one") == [None]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
