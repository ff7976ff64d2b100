"""Reads one answer of HTTP/1.1 from the bytes of a connection. No sockets, no clock."""

from __future__ import annotations

from enum import Enum

MAX_HEAD = 64 << 10
MAX_LINE = 4 << 10


class Broken(Exception):
    """Not an answer, or not a whole one."""


class _Part(Enum):
    """What comes next."""

    HEAD = 1
    SIZE = 2  # of a chunk
    CHUNK_END = 3  # the line end after a chunk: not part of the body
    TRAILER = 4
    LENGTH = 5  # a body of known length
    REST = 6  # a body that ends with the connection
    END = 7


class Reader:
    """Give it bytes as they come; it gives back those of the body."""

    def __init__(self) -> None:
        self.status = 0
        self.reusable = True  # the connection, once the answer has ended
        self._part = _Part.HEAD
        self._held = b""
        self._left = 0  # bytes of the body, or of this chunk

    @property
    def ended(self) -> bool:
        return self._part is _Part.END

    def feed(self, data: bytes) -> bytes:
        """Raises Broken."""
        self._held += data
        if self._part is _Part.HEAD and not self._read_head():
            return b""
        if self._part is _Part.REST:
            return self._take(len(self._held))
        if self._part is _Part.LENGTH:
            return self._read_length()
        return self._read_chunks()

    def close(self) -> None:
        """The connection has ended. Raises Broken where the answer had not."""
        if self._part is _Part.REST:
            self._part = _Part.END
        if not self.ended:
            raise Broken(f"the server hung up {'within' if self.status else 'without'} an answer")

    def _read_head(self) -> bool:
        end = self._held.find(b"\r\n\r\n")
        if end < 0:
            if len(self._held) > MAX_HEAD:
                raise Broken("not HTTP: a head without an end")
            if not b"HTTP/1.".startswith(self._held[:7]):
                raise Broken(f"not HTTP/1.1: {self._held[:40]!r}")
            return False
        first, *lines = self._held[:end].decode("latin-1").split("\r\n")
        self._held = self._held[end + 4 :]
        version, _, rest = first.partition(" ")
        if not version.startswith("HTTP/1.") or not rest[:3].isdigit():
            raise Broken(f"not HTTP/1.1: {first[:40]!r}")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if rest.startswith("1"):  # "go on", of which the answer is still to come
            return self._read_head()
        self.status = int(rest[:3])
        self._choose_body(version, headers)
        return True

    def _choose_body(self, version: str, headers: dict[str, str]) -> None:
        kept = "keep-alive" if version == "HTTP/1.0" else "close"
        self.reusable = (headers.get("connection", "").lower() == kept) == (version == "HTTP/1.0")
        if self.status in (204, 304):
            self._part = _Part.END
        elif "chunked" in headers.get("transfer-encoding", "").lower():
            self._part = _Part.SIZE
        elif (length := headers.get("content-length")) is not None:
            if not length.isdecimal():
                raise Broken(f"a content-length of {length[:40]!r}")
            self._left = int(length)
            self._part = _Part.LENGTH if self._left else _Part.END
        else:
            self._part, self.reusable = _Part.REST, False

    def _read_length(self) -> bytes:
        body = self._take(self._left)
        self._left -= len(body)
        if not self._left:
            self._part = _Part.END
        return body

    def _take(self, num: int) -> bytes:
        taken, self._held = self._held[:num], self._held[num:]
        return taken

    def _read_chunks(self) -> bytes:
        held, at, body = self._held, 0, list[bytes]()
        while self._part is not _Part.END:
            if self._left:
                piece = held[at : at + self._left]
                at += len(piece)
                self._left -= len(piece)
                body.append(piece)
                if self._left:
                    break
            end = held.find(b"\r\n", at)
            if end < 0:
                if len(held) - at > MAX_LINE:
                    raise Broken("a line without an end between chunks")
                break
            self._read_line(held[at:end])
            at = end + 2
        self._held = held[at:]
        return b"".join(body)

    def _read_line(self, line: bytes) -> None:
        match self._part:
            case _Part.SIZE:
                try:
                    self._left = int(line.partition(b";")[0], 16)
                except ValueError:
                    self._left = -1
                if self._left < 0:
                    raise Broken(f"not the size of a chunk: {line[:40]!r}")
                self._part = _Part.CHUNK_END if self._left else _Part.TRAILER
            case _Part.CHUNK_END if not line:
                self._part = _Part.SIZE
            case _Part.TRAILER:
                self._part = _Part.TRAILER if line else _Part.END
            case _:
                raise Broken(f"not the end of a chunk: {line[:40]!r}")
