"""The engine's connections: an I/O thread that moves frames between gateways and two queues of the step loop.

Any number of gateways may connect. Sequence ids are a gateway's own; inside the engine they carry the connection's
number above CONNECTION_SHIFT, so that no two gateways share one.
"""

from __future__ import annotations

import logging
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from engine.backlog import Backlog
from engine.door import Door, UnixDoor, Wire
from scheduler.protocol import (
    Abort,
    FrameError,
    FrameSplitter,
    FromEngine,
    Outputs,
    Pulse,
    ToEngine,
    encode_frame,
    to_engine_decoder,
)

log = logging.getLogger("headrace.engine")

CONNECTION_SHIFT = 48
SEQ_MASK = (1 << CONNECTION_SHIFT) - 1
READ_BYTES = 1 << 18
WRITE_BYTES = 1 << 15  # at a time, of what is unsent
PULSE_S = 1.0  # between two signs of life, which also come while a step runs
STALL_S = 30.0  # a gateway that reads nothing for so long, though there is something to read, is cut off
CONGESTED_BYTES = 64 << 20  # with more unread than this, the step loop makes no more of it


def internal_id(connection: int, seq_id: int) -> int:
    return (connection << CONNECTION_SHIFT) | (seq_id & SEQ_MASK)


def _has_prompt(message: Outputs) -> bool:
    """One that was read is large, and has a frame of its own."""
    return any(output.first is not None and output.first.prompt is not None for output in message.outputs)


@dataclass(frozen=True, slots=True)
class Gone:
    """A gateway has left; nothing of it is wanted any more."""


@dataclass(slots=True)
class _Connection:
    number: int
    wire: Wire
    splitter: FrameSplitter = field(default_factory=FrameSplitter)
    unsent: bytearray = field(default_factory=bytearray)  # frames
    backlog: Backlog = field(default_factory=Backlog)  # what comes after them; empty where there are none
    progress: float = 0.0  # when it last read something, or had nothing left to read


class Server:
    """Speaks with whom a door lets in. `take`, `take_aborts` and `wait` are the step loop's, `send` for any thread."""

    def __init__(
        self,
        door: Door | str,
        clock: Callable[[], float] = time.monotonic,
        pulse: Callable[[], Pulse | None] = lambda: None,
        pulse_s: float = PULSE_S,
    ) -> None:
        """door: or the path of a unix socket. pulse: asked by the I/O thread; None: there is no loop yet."""
        self._clock = clock
        self._pulse = pulse
        self._pulse_s = pulse_s
        self._pulsed_at = clock()
        self._door = UnixDoor(door) if isinstance(door, str) else door
        self._waker, self._wakened = socket.socketpair()
        self._waker.setblocking(False)
        self._wakened.setblocking(False)
        self._lock = threading.Lock()  # guards connections, their unsent bytes and the greeting
        self._connections: dict[int, _Connection] = {}
        self._last_number = 0
        self._greeting: dict[str, bytes] = {}  # the last frame of each kind that a newcomer must see
        self._inbox: deque[tuple[int, ToEngine | Gone]] = deque()
        self._aborts: deque[tuple[int, Abort | Gone]] = deque()
        self._arrived = threading.Event()
        self._heard = threading.Event()  # some gateway has read all that was sent to it
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine-io", daemon=True)
        self._thread.start()

    # --- the step loop's side ---

    def take(self) -> list[tuple[int, ToEngine | Gone]]:
        """(connection, message) of all that has arrived, in order."""
        self._arrived.clear()
        self._aborts.clear()  # all of them are in the inbox too
        return [self._inbox.popleft() for _ in range(len(self._inbox))]

    def take_aborts(self) -> list[tuple[int, Abort | Gone]]:
        """What was cancelled while a step ran. The inbox will say it once more, which does no harm."""
        return [self._aborts.popleft() for _ in range(len(self._aborts))]

    def wait(self, seconds: float) -> None:
        """Until something arrives, at most so long."""
        self._arrived.wait(seconds)

    def wake(self) -> None:
        """Ends a `wait`. Takes no lock, so a signal handler may call it whatever it interrupted; an Event would not
        do, for the interrupted thread may hold its lock."""
        self._wake_io()

    def send(self, connection: int, message: FromEngine) -> None:
        """Sends a frame, or queues what the socket does not take at once: outputs merged. What is no output may
        overtake those. A connection that is gone hears nothing, and that is no error."""
        with self._lock:
            peer = self._connections.get(connection)
            if peer is None:
                return
            if peer.unsent and isinstance(message, Outputs) and not _has_prompt(message):
                peer.backlog.add(message)
                if peer.backlog.is_full:
                    self._queue_backlog(peer)
                return
            frame = encode_frame(message)
            self._queue(peer, frame[self._send_now(peer, frame) :])
            if not peer.unsent:
                return
        self._wake_io()

    def _queue(self, peer: _Connection, data: bytes) -> None:
        """With the lock held."""
        if not peer.unsent:
            peer.progress = self._clock()
        peer.unsent += data

    def _queue_backlog(self, peer: _Connection) -> None:
        """With the lock held."""
        outputs = peer.backlog.take()
        if outputs is not None:
            self._queue(peer, encode_frame(outputs))

    def _send_now(self, peer: _Connection, frame: bytes) -> int:
        """Bytes that the socket took, which spares the way over the I/O thread."""
        if peer.unsent:
            return 0  # after what is queued
        try:
            return peer.wire.send(frame)
        except OSError:
            return 0  # full, or broken: the I/O thread finds out which

    def broadcast(self, message: FromEngine) -> None:
        """To every gateway, and remembered for those that connect later."""
        frame = encode_frame(message)
        with self._lock:
            self._greeting[type(message).__name__] = frame
            self._heard.clear()
            for peer in self._connections.values():
                self._queue_backlog(peer)
                self._queue(peer, frame)
        self._wake_io()

    def has_told(self, kind: type[FromEngine]) -> bool:
        """To all."""
        with self._lock:
            return kind.__name__ in self._greeting

    @property
    def congested(self) -> bool:
        """Gateways have much to read. The end of it ends a `wait`."""
        with self._lock:
            return self._num_unsent() > CONGESTED_BYTES

    def _num_unsent(self) -> int:
        return sum(len(peer.unsent) for peer in self._connections.values())

    @property
    def connections(self) -> list[int]:
        with self._lock:
            return list(self._connections)

    def linger(self, seconds: float) -> None:
        """Until some gateway has read everything, at most so long; also when none has connected yet."""
        self._heard.wait(seconds)

    def close(self, seconds: float) -> None:
        """Sends what is queued, for at most so long, then closes everything."""
        self._stopping = True
        self._wake_io()
        self._thread.join(seconds)
        self._waker.close()

    def _wake_io(self) -> None:
        try:
            self._waker.send(b"\0")
        except (BlockingIOError, OSError):
            return  # it is awake already, or closed

    # --- the I/O thread ---

    def _run(self) -> None:
        selector = selectors.DefaultSelector()
        selector.register(self._door.listener, selectors.EVENT_READ)
        selector.register(self._wakened, selectors.EVENT_READ)
        while not (self._stopping and self._all_sent()):
            self._send_pulse()
            for key, _ in selector.select(timeout=self._pulse_s):
                if isinstance(key.data, _Connection):
                    self._serve(selector, key.data)
                elif key.fileobj is self._wakened:
                    self._wakened.recv(4096)
                    self._arrived.set()
                else:
                    self._ask_door(selector, key)
            self._door.tire(selector)
            self._arm_writes(selector)
        for connection in self.connections:
            self._drop(selector, self._connections[connection], "the engine stops")
        self._door.close(selector)
        selector.close()
        self._wakened.close()

    def _ask_door(self, selector: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
        """A fault of one who wants in must not be the end of those who are in."""
        try:
            wire = self._door.turn(selector, key)
        except Exception:
            log.exception("a connection that has just come has failed")
            return
        if wire is not None:
            self._welcome(selector, wire)

    def _send_pulse(self) -> None:
        if self._clock() - self._pulsed_at < self._pulse_s:
            return
        self._pulsed_at = self._clock()
        if (pulse := self._pulse()) is not None:
            for connection in self.connections:
                self.send(connection, pulse)

    def _all_sent(self) -> bool:
        with self._lock:
            return self._num_unsent() == 0

    def _welcome(self, selector: selectors.BaseSelector, wire: Wire) -> None:
        with self._lock:
            self._last_number += 1
            peer = _Connection(self._last_number, wire)
            for frame in self._greeting.values():
                self._queue(peer, frame)
            self._connections[peer.number] = peer
        selector.register(wire, selectors.EVENT_READ, peer)

    def _arm_writes(self, selector: selectors.BaseSelector) -> None:
        with self._lock:
            peers = list(self._connections.values())
        for peer in peers:
            if peer.unsent:
                self._write(selector, peer)

    def _serve(self, selector: selectors.BaseSelector, peer: _Connection) -> None:
        try:
            data = peer.wire.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._drop(selector, peer, str(error))
            return
        if not data:
            self._drop(selector, peer, "it closed the connection")
            return
        try:
            for body in peer.splitter.feed(data):
                self._deliver(peer.number, to_engine_decoder.decode(body))
        except (FrameError, msgspec.DecodeError, RecursionError) as error:
            self._drop(selector, peer, f"it does not speak the protocol: {error}")

    def _deliver(self, connection: int, message: ToEngine | Gone) -> None:
        self._inbox.append((connection, message))
        if isinstance(message, Abort | Gone):
            self._aborts.append((connection, message))
        self._arrived.set()

    def _write(self, selector: selectors.BaseSelector, peer: _Connection) -> None:
        with self._lock:
            data = bytes(peer.unsent[:WRITE_BYTES])
        try:
            sent = peer.wire.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._drop(selector, peer, str(error))
            return
        unsent = self._took(peer, sent)
        if unsent and self._clock() - peer.progress > STALL_S:
            self._drop(selector, peer, f"it has read nothing for {STALL_S:g} s, and {unsent} bytes are waiting")
            return
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if unsent else 0)
        if selector.get_key(peer.wire).events != wanted:
            selector.modify(peer.wire, wanted, peer)

    def _took(self, peer: _Connection, sent: int) -> int:
        """Bytes that are left."""
        with self._lock:
            before = self._num_unsent()
            del peer.unsent[:sent]
            if sent:
                peer.progress = self._clock()
            if not peer.unsent:
                self._queue_backlog(peer)
            if not peer.unsent:
                self._heard.set()
            if before - sent <= CONGESTED_BYTES < before:
                self._arrived.set()
            return len(peer.unsent)

    def _drop(self, selector: selectors.BaseSelector, peer: _Connection, why: str) -> None:
        with self._lock:
            if self._connections.pop(peer.number, None) is None:
                return
        selector.unregister(peer.wire)
        peer.wire.close()
        log.info("gateway connection %d ended: %s", peer.number, why)
        self._deliver(peer.number, Gone())
