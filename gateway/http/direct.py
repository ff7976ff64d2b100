"""Past the server's layers: chunks of an HTTP/1.1 answer, straight to its connection.

A piece of a stream has little to be done to it: its length in front and a line's end behind (RFC 9112, 7.1). Through
the middleware, Hypercorn and h11 that takes as long as the system call that sends it: docs/log.md. The head and the end
of an answer go through all of them, for there is much to know.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from starlette.types import Scope

KEY = "headrace.direct"  # in the state of a connection, which its requests see


class Line(Protocol):
    """To one client."""

    def is_free(self) -> bool:
        """What is written now need not wait for what was written before."""

    def write(self, data: bytes) -> None:
        """Only while free; at least one byte."""


class ChunkedLine:
    """For an answer that the connection has begun and not ended, and whose head gave no length."""

    __slots__ = ("_transport",)

    def __init__(self, transport: asyncio.WriteTransport) -> None:
        self._transport = transport

    def is_free(self) -> bool:
        return self._transport.get_write_buffer_size() == 0 and not self._transport.is_closing()

    def write(self, data: bytes) -> None:
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))


def line_of(scope: Scope) -> Line | None:
    """None where answers are framed otherwise (HTTP/1.0, HTTP/2), and from servers that know nothing of this."""
    line: Line | None = scope.get("state", {}).get(KEY)
    return line if scope.get("http_version") == "1.1" else None
