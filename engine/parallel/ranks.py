"""The other ranks as rank 0 sees them: processes that it starts, sends frames to, watches, and takes with it.

Without one of them nothing works, and rank 0 itself may be waiting on its device for what will never come. So a thread
of its own watches; what it finds ends the whole group, in bounded time.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from engine.parallel.messages import Alive, Failed, Finish, Kind, Launch, RankSetup, Seat, frame, from_rank_decoder
from scheduler.protocol import EngineConfig, FrameSplitter

log = logging.getLogger("headrace.engine")

COMMAND: tuple[str, ...] = (sys.executable, "-P", "-m", "engine.parallel")
LOOK_S = 1.0  # between two looks at the time
SILENCE_S = 20.0  # a rank that was ready and says nothing for so long hangs
END_S = 2.0  # for the end of a process that has closed its socket
STOP_S = 5.0
READ_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Loss:
    """Why the group has come to its end."""

    kind: Kind
    message: str
    was_killed: bool = False  # by something outside


@dataclass(slots=True)
class _Rank:
    number: int
    process: subprocess.Popen[bytes]
    sock: socket.socket
    splitter: FrameSplitter = field(default_factory=FrameSplitter)
    heard_at: float | None = None  # None: it is not ready
    last_words: Failed | None = None


class Ranks:
    def __init__(
        self,
        config: EngineConfig,
        on_loss: Callable[[Loss], None],
        command: Sequence[str] = COMMAND,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Starts them. on_loss: called once, by whichever thread learns of it, when all other ranks are killed."""
        self.seat = Seat(0, config.tp, f"{config.socket_path}.ranks")
        self._on_loss = on_loss
        self._clock = clock
        self._lock = threading.Lock()
        self._over = False
        self._ranks = [self._start(config, number, command) for number in range(1, config.tp)]
        self._thread = threading.Thread(target=self._watch, name="ranks", daemon=True)
        self._thread.start()

    def _start(self, config: EngineConfig, number: int, command: Sequence[str]) -> _Rank:
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=(theirs.fileno(),))
            seat = msgspec.structs.replace(self.seat, rank=number)
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # it has ended: its socket tells
                process.stdin.write(msgspec.json.encode(RankSetup(config, seat, theirs.fileno())) + b"\n")
                process.stdin.flush()
        return _Rank(number, process, ours)

    def send(self, message: Launch | Finish) -> None:
        """To all, in order. Ends the group where one is gone."""
        data = frame(message)
        for rank in self._ranks:
            try:
                rank.sock.sendall(data)
            except OSError:
                self.lose(self._end_of(rank))

    def lose(self, loss: Loss) -> None:
        """Ends the group; of several calls the first."""
        with self._lock:
            if self._over:
                return
            self._over = True
        self.kill()
        self._on_loss(loss)

    def close(self) -> None:
        """Lets them end, at most STOP_S, then kills them."""
        with self._lock:
            self._over = True
        for rank in self._ranks:
            with contextlib.suppress(OSError):
                rank.sock.shutdown(socket.SHUT_RDWR)
        deadline = self._clock() + STOP_S
        for rank in self._ranks:
            with contextlib.suppress(subprocess.TimeoutExpired):
                rank.process.wait(max(deadline - self._clock(), 0.0))
        self.kill()
        self._thread.join(STOP_S)
        for rank in self._ranks:
            rank.sock.close()
            rank.process.wait(STOP_S)
            if rank.process.stdin is not None:
                rank.process.stdin.close()

    def kill(self) -> None:
        for rank in self._ranks:
            rank.process.kill()

    # --- the thread that watches ---

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for rank in self._ranks:
                selector.register(rank.sock, selectors.EVENT_READ, rank)
            while not self._over:
                for key, _ in selector.select(LOOK_S):
                    if not self._hears(key.data):
                        self.lose(self._end_of(key.data))
                        return
                self._look_for_silence()

    def _hears(self, rank: _Rank) -> bool:
        """False: it is gone."""
        try:
            data = rank.sock.recv(READ_BYTES)
        except OSError:
            return False
        rank.heard_at = self._clock()
        for body in rank.splitter.feed(data):
            message = from_rank_decoder.decode(body)
            if isinstance(message, Failed):
                rank.last_words = message
            else:
                assert isinstance(message, Alive)
        return bool(data)

    def _look_for_silence(self) -> None:
        for rank in self._ranks:
            if rank.heard_at is not None and self._clock() - rank.heard_at > SILENCE_S:
                self.lose(Loss("internal", f"rank {rank.number} has said nothing for {SILENCE_S:g} s"))

    def _end_of(self, rank: _Rank) -> Loss:
        if rank.last_words is not None:
            return Loss(rank.last_words.kind, f"rank {rank.number}: {rank.last_words.message}")
        try:
            code = rank.process.wait(END_S)
        except subprocess.TimeoutExpired:
            return Loss("internal", f"rank {rank.number} has closed its socket")
        if code >= 0:
            return Loss("internal", f"rank {rank.number} ended with code {code}")
        killed = code == -signal.SIGKILL
        name = signal.Signals(-code).name + (" (out of memory?)" if killed else "")
        return Loss("internal", f"rank {rank.number} was ended by {name}", killed)


def end_process(was_killed: bool) -> None:
    """This one, now, as the rank did whose end it is: who started it sees what it would see of a single process. An
    orderly end could wait for peers that are gone."""
    if was_killed:
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(1)
