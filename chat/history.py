"""What was typed before, one JSON string a line: a message of several lines is one entry. Nobody else may read it."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

MAX_ENTRIES = 1000
MAX_ENTRY_CHARS = 100_000  # a longer one is not kept
MAX_FILE_BYTES = 16 << 20


class History:
    """Where its file cannot be read or written, it is of this time only."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.entries = self._read()

    def add(self, text: str) -> None:
        if not text or len(text) > MAX_ENTRY_CHARS or (self.entries and self.entries[-1] == text):
            return
        self.entries.append(text)
        self._write([text], os.O_APPEND)

    def _read(self) -> list[str]:
        try:
            if self._path is None or self._path.stat().st_size > 2 * MAX_FILE_BYTES:
                return []
            lines = self._path.read_bytes().splitlines()
        except OSError:
            return []
        entries = []
        for line in lines[-MAX_ENTRIES:]:
            try:
                entries.append(msgspec.json.decode(line, type=str))
            except msgspec.MsgspecError:
                continue  # half a line, of one that was killed
        if len(lines) > 2 * MAX_ENTRIES or sum(map(len, lines)) > MAX_FILE_BYTES:
            self._write(entries, os.O_TRUNC)
        return entries

    def _write(self, entries: list[str], how: int) -> None:
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            file = os.open(self._path, os.O_WRONLY | os.O_CREAT | how, 0o600)
            with os.fdopen(file, "wb") as opened:
                opened.write(b"".join(msgspec.json.encode(entry) + b"\n" for entry in entries))
        except OSError:
            self._path = None
