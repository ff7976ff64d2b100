"""API keys: who may ask, under which name and limits. Only their SHA-256 is kept, and none is ever shown or logged."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from gateway.http.ratelimit import RateLimits

RELOAD_S = 1.0  # the least time between two looks at the file
LIMITS = tuple(limit.name for limit in fields(RateLimits))
MAX_LIMIT = 10**12
_HASHED = re.compile(r"sha256:(?P<digest>[0-9a-fA-F]{64})")
_KEY = re.compile(r"[!-~]{1,1024}")
_NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")

_log = logging.getLogger("headrace.keys")
_Version = tuple[int, int, int] | None


class KeysError(Exception):
    """A key or a file of keys that cannot be used. One line, without the key."""


@dataclass(frozen=True, slots=True)
class Key:
    digest: bytes
    name: str
    rpm: int | None = None  # None: as for all keys; 0: no limit
    tpm: int | None = None
    concurrency: int | None = None
    admin: bool = False  # may change engines: docs/rolling.md

    def limits(self, defaults: RateLimits) -> RateLimits:
        own = {name: getattr(self, name) for name in LIMITS if getattr(self, name) is not None}
        return replace(defaults, **own)


def tenant_of(name: str | None) -> int:
    """The number under which an engine knows a key, the same from every gateway. 0: none was given."""
    return 0 if name is None else int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest()) or 1


def hashed(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()


def parse_key(text: str) -> Key:
    """A key, or its hash as sha256:<hex>. Raises KeysError."""
    if text.startswith("sha256:"):
        if (match := _HASHED.fullmatch(text)) is None:
            raise KeysError("a hashed key is sha256: and 64 hexadecimal digits")
        digest = bytes.fromhex(match["digest"])
    elif _KEY.fullmatch(text):
        digest = hashed(text.encode())
    else:
        raise KeysError("a key is 1 to 1024 visible ASCII characters")
    return Key(digest, f"key-{digest.hex()[:8]}")


def parse_line(line: str) -> Key | None:
    """`key name=team-a rpm=60 tpm=100000 concurrency=8 admin  # comment`. Raises KeysError."""
    words = re.sub(r"(^|\s)#.*", "", line).split()
    if not words:
        return None
    key = parse_key(words[0])
    settings: dict[str, Any] = {}
    for number, word in enumerate(words[1:], start=1):
        name, equals, value = word.partition("=")
        if word == "admin" and name not in settings:
            settings[name] = True
            continue
        if not equals or name not in ("name", *LIMITS):
            # not quoted: it may be a second key
            known = ", ".join(f"{each}=" for each in LIMITS)
            raise KeysError(f"word {number} after the key is none of name=, {known}, admin")
        if name in settings:
            raise KeysError(f"{name}= is there twice")
        settings[name] = _name(value) if name == "name" else _limit(name, value)
    return replace(key, **settings)


def _name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise KeysError("name= takes 1 to 64 letters, digits and . _ @ -")
    return value


def _limit(name: str, value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) <= 13 and int(value) <= MAX_LIMIT):
        raise KeysError(f"{name}= takes a number from 0 (no limit) to {MAX_LIMIT}")
    return int(value)


def read_keys(path: Path) -> list[Key]:
    """Raises KeysError, which names the file and the line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise KeysError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise KeysError(f"{path} is not UTF-8 text") from error
    return list(_unique(text, path))


def _unique(text: str, path: Path) -> Iterator[Key]:
    line_of: dict[bytes, int] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            key = parse_line(line)
        except KeysError as error:
            raise KeysError(f"{path}, line {number}: {error}") from error
        if key is None:
            continue
        if key.digest in line_of:
            raise KeysError(f"{path}, line {number}: the key of line {line_of[key.digest]} again")
        line_of[key.digest] = number
        yield key


class Keys:
    """All keys that open the server. The file is read again when it has changed; while it is broken, what it held
    before stays in force."""

    def __init__(self, own: str, file: Path | None, clock: Callable[[], float]) -> None:
        """own: the one given by itself; "": none. Raises KeysError."""
        self._own = [replace(parse_key(own), admin=True)] if own else []
        self._file = file
        self._clock = clock
        self._in_file: list[Key] = []
        self._version: _Version = None
        self._looked_at = clock()
        if file is not None:
            self._version = _version(file)
            self._in_file = read_keys(file)
        if not self._own and not self._in_file:
            raise KeysError(f"{file} holds no keys")

    def find(self, secret: bytes) -> Key | None:
        """Compares with every key, each in the same time wherever they differ."""
        self._look_at_file()
        digest = hashed(secret)
        found = None
        for key in (*self._own, *self._in_file):
            if hmac.compare_digest(key.digest, digest) and found is None:
                found = key
        return found

    def _look_at_file(self) -> None:
        now = self._clock()
        if self._file is None or now - self._looked_at < RELOAD_S:
            return
        self._looked_at = now
        version = _version(self._file)
        if version == self._version:
            return
        self._version = version
        try:
            self._in_file = read_keys(self._file)
        except KeysError as error:
            _log.error("the keys stay as they were: %s", error)
            return
        level = logging.INFO if self._in_file else logging.WARNING
        _log.log(level, "%s holds %d keys now", self._file, len(self._in_file))


def _version(path: Path) -> _Version:
    """Taken before reading, so that a change in between is seen the next time. None: it is not there."""
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_mtime_ns, state.st_ino, state.st_size
