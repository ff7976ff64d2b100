"""A rank beside the first: builds its part of the model, then does what rank 0 does, call by call."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import msgspec

from engine.logs import configure_logging
from engine.parallel.messages import Alive, Failed, Kind, Launch, RankSetup, frame, to_rank_decoder
from scheduler.protocol import LENGTH_BYTES

if TYPE_CHECKING:
    from engine.parallel.leader import Shared

log = logging.getLogger("headrace.engine")

ALIVE_S = 1.0
PR_SET_PDEATHSIG = 1  # Linux


Make = Callable[[RankSetup], "Shared"]


def built(setup: RankSetup) -> Shared:
    from engine.build import Phases, build  # imports torch

    return build(setup.config, Phases(lambda *_: None), setup.seat)[1]


def main(make: Make = built) -> None:
    """Never returns: no part of a process whose peers may be gone is taken down in order."""
    configure_logging()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    setup = msgspec.json.decode(sys.stdin.buffer.readline(), type=RankSetup)
    _name_lines(setup.seat.rank)
    _die_with_parent()
    sock = socket.socket(fileno=setup.socket)
    code = run(make, setup, sock)
    sys.stderr.flush()
    os._exit(code)


def run(make: Make, setup: RankSetup, sock: socket.socket) -> int:
    try:
        follow(make(setup), sock)
        return 0
    except Exception as error:
        from engine.errors import ModelRefused, OutOfMemory

        kind: Kind = "model" if isinstance(error, ModelRefused) else "internal"
        if isinstance(error, OutOfMemory | MemoryError):
            kind = "memory"
        if kind == "internal":
            log.exception("this rank failed")
        told = str(error) if kind != "internal" else repr(error)
        with contextlib.suppress(OSError):  # rank 0 is gone too
            sock.sendall(frame(Failed(kind, told)))
        return 1


def follow(runner: Shared, sock: socket.socket) -> None:
    """Until rank 0 hangs up."""
    threading.Thread(target=_tell, args=(sock,), daemon=True).start()
    for body in _frames(sock):
        message = to_rank_decoder.decode(body)
        if isinstance(message, Launch):
            runner.correct(message.drawn)
            runner.launch(message.plan)
        else:
            runner.finish()


def _frames(sock: socket.socket) -> Iterator[bytes]:
    with sock.makefile("rb") as stream:
        while head := stream.read(LENGTH_BYTES):
            yield stream.read(int.from_bytes(head, "little"))


def _tell(sock: socket.socket) -> None:
    """From a thread: the step loop may be waiting for its device, or its peers."""
    data, pause = frame(Alive()), threading.Event()
    with contextlib.suppress(OSError):
        while not pause.wait(ALIVE_S):
            sock.sendall(data)


def _die_with_parent() -> None:
    """Whatever the main thread waits for."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    while os.read(0, 4096):
        pass
    os._exit(1)


def _name_lines(rank: int) -> None:
    make = logging.getLogRecordFactory()

    def named(*args: object, **kwargs: object) -> logging.LogRecord:
        record = make(*args, **kwargs)
        record.msg = f"rank {rank}: {record.msg}"
        return record

    logging.setLogRecordFactory(named)
