"""Sockets that know when the bytes they read had come, by the kernel's stamps: while the event loop is busy, bytes lie
in the kernel, of connections that are not even accepted.

Linux stamps what comes over TCP. Elsewhere, and over unix sockets, bytes count as come when they are read.
"""

from __future__ import annotations

import socket
import struct
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

SO_TIMESTAMPNS = 35  # of Linux, but for SPARC and PA-RISC; Python has no name for it
STAMP = struct.Struct("@ll")  # a timespec by CLOCK_REALTIME
ROOM = socket.CMSG_SPACE(STAMP.size)
MAX_READ = 1 << 16  # bytes: asyncio asks for four times as many, and memory for those costs 20 us whatever comes
MAX_AGE_S = 600.0  # an older stamp is from before the clock was set

Told = Sequence[tuple[int, int, bytes]]  # ancillary data


class StampedSocket(socket.socket):
    """A connection."""

    came: float | None = None  # when the last bytes of the last read had come, by `time.monotonic`; None: none was made

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        data, told, _, _ = self.recvmsg(min(size, MAX_READ), ROOM, flags)
        self.came = came_at(told)
        return data

    def recv_into(self, buffer: WriteableBuffer, size: int = 0, flags: int = 0) -> int:
        view = memoryview(buffer)
        num_bytes, told, _, _ = self.recvmsg_into([view[:size] if size else view], ROOM, flags)
        self.came = came_at(told)
        return num_bytes


class StampedListener(socket.socket):
    """Its connections are stamped, if that was asked for before it listened."""

    @classmethod
    def of(cls, listener: socket.socket) -> StampedListener:
        """In the place of `listener`, which is empty afterwards."""
        stamped = cls(listener.family, listener.type, listener.proto, fileno=listener.detach())
        stamped.setblocking(False)
        return stamped

    def accept(self) -> tuple[StampedSocket, Any]:
        accepted, address = super().accept()
        return StampedSocket(accepted.family, accepted.type, accepted.proto, fileno=accepted.detach()), address


def ask_for_stamps(unused: socket.socket) -> None:
    """Of a connection before it is made, or of a listener before it listens, whose connections inherit this."""
    if sys.platform == "linux":
        unused.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)


def came_at(told: Told) -> float:
    """By `time.monotonic`, as far apart from now as the stamp is by the clock that the kernel stamps with."""
    now = time.monotonic()
    for level, kind, data in told:
        if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS and len(data) == STAMP.size:
            seconds, nanoseconds = STAMP.unpack(data)
            age_s = time.time() - seconds - nanoseconds * 1e-9
            return now - age_s if 0 <= age_s <= MAX_AGE_S else now
    return now
