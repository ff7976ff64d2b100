"""Frames over a real unix socket."""

import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.server import CONGESTED_BYTES, STALL_S, Gone, Server
from scheduler.protocol import (
    Abort,
    EngineStats,
    Fatal,
    FrameSplitter,
    FromEngine,
    Outputs,
    Progress,
    Submit,
    ToEngine,
    encode_frame,
    from_engine_decoder,
)
from scheduler.types import SamplingParams

STATS = EngineStats(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
SUBMIT = Submit([7], [1, 2, 3], SamplingParams(max_tokens=4), [0])


class Gateway:
    """The other end, blocking, with a deadline on every read."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(10)
        try:
            self.sock.connect(str(path))
        except OSError:
            self.sock.close()
            raise
        self._splitter = FrameSplitter()
        self._bodies: list[bytes] = []

    def send(self, *messages: ToEngine) -> None:
        self.sock.sendall(b"".join(encode_frame(message) for message in messages))

    def receive(self) -> FromEngine:
        while not self._bodies:
            data = self.sock.recv(1 << 16)
            assert data, "the engine closed the connection"
            self._bodies = self._splitter.feed(data)
        return from_engine_decoder.decode(self._bodies.pop(0))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s"


@pytest.fixture
def server(path: Path) -> Iterator[Server]:
    server = Server(str(path))
    yield server
    server.close(10)


@pytest.fixture
def gateways(path: Path, server: Server) -> Iterator[Callable[[], Gateway]]:
    opened: list[Gateway] = []

    def connect() -> Gateway:
        opened.append(Gateway(path))
        return opened[-1]

    yield connect
    for gateway in opened:
        gateway.sock.close()


def taken(server: Server, count: int) -> list[tuple[int, object]]:
    """The next `count` messages of the inbox."""
    got: list[tuple[int, object]] = []
    for _ in range(100):
        got += server.take()
        if len(got) >= count:
            return got
        server.wait(0.1)
    raise AssertionError(f"only {got} arrived")


def test_messages_arrive_in_order_under_their_connection(server: Server, gateways: Callable[[], Gateway]) -> None:
    one, two = gateways(), gateways()
    one.send(SUBMIT, Abort([7]))
    first = taken(server, 2)
    two.send(SUBMIT)
    [(other, message)] = taken(server, 1)
    assert [message for _, message in first] == [SUBMIT, Abort([7])]
    assert message == SUBMIT
    assert other not in {connection for connection, _ in first}


def test_a_frame_in_pieces_is_put_together(server: Server, gateways: Callable[[], Gateway]) -> None:
    gateway = gateways()
    for byte in encode_frame(SUBMIT):
        gateway.sock.sendall(bytes([byte]))
    assert [message for _, message in taken(server, 1)] == [SUBMIT]


def test_aborts_can_be_seen_before_the_inbox_is_taken(server: Server, gateways: Callable[[], Gateway]) -> None:
    gateways().send(SUBMIT, Abort([7]))
    for _ in range(100):
        server.wait(0.1)
        if aborts := server.take_aborts():
            break
    assert [message for _, message in aborts] == [Abort([7])]
    assert [message for _, message in taken(server, 2)] == [SUBMIT, Abort([7])]


def test_a_late_gateway_hears_what_was_told_to_all(server: Server, gateways: Callable[[], Gateway]) -> None:
    server.broadcast(Progress("loading", 1, 2))
    server.broadcast(Progress("loading", 2, 2))
    server.broadcast(Fatal("model", "no such model"))
    gateway = gateways()
    assert gateway.receive() == Progress("loading", 2, 2)
    assert gateway.receive() == Fatal("model", "no such model")
    server.linger(10)


def test_outputs_larger_than_the_socket_takes_at_once_arrive_whole(
    server: Server, gateways: Callable[[], Gateway]
) -> None:
    gateway = gateways()
    gateway.send(SUBMIT)
    [(connection, _)] = taken(server, 1)
    large = Fatal("internal", "x" * 3_000_000)
    server.send(connection, large)
    server.send(connection, Outputs([], None, STATS))
    assert gateway.receive() == large
    assert gateway.receive() == Outputs([], None, STATS)


@pytest.mark.parametrize("garbage", [b"\xff\xff\xff\xff", b"\x03\0\0\0abc", b"GET / HTTP/1.1\r\n\r\n"])
def test_who_does_not_speak_the_protocol_is_cut_off_alone(
    server: Server, gateways: Callable[[], Gateway], garbage: bytes
) -> None:
    good, bad = gateways(), gateways()
    bad.sock.sendall(garbage)
    [(_, message)] = taken(server, 1)
    assert message == Gone()
    assert bad.sock.recv(1) == b""
    good.send(SUBMIT)
    assert [message for _, message in taken(server, 1)] == [SUBMIT]


def test_a_gateway_that_leaves_is_told_to_the_loop(server: Server, gateways: Callable[[], Gateway]) -> None:
    gateway = gateways()
    gateway.send(SUBMIT)
    [(connection, _)] = taken(server, 1)
    gateway.sock.close()
    assert taken(server, 1) == [(connection, Gone())]
    server.send(connection, Outputs([], None, STATS))  # to nobody, and no error


def test_a_signal_handler_may_wake_the_loop_wherever_it_is(server: Server) -> None:
    """A handler runs between two instructions of the thread that it then calls into: a lock there would never open."""
    rung = 0

    def ring(signum: int, frame: object) -> None:
        nonlocal rung
        rung += 1
        server.wake()

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 0.0001, 0.0001)
    try:
        for _ in range(3000):
            server.take()
            server.wait(0.0001)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert rung > 100
    server.take()
    server.wake()
    server.wait(100)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def timed(path: Path, clock: Clock) -> Iterator[Server]:
    server = Server(str(path), clock)
    yield server
    server.close(10)


LARGE = Fatal("internal", "x" * 40_000_000)


def test_a_gateway_that_reads_is_kept_whatever_is_left_to_read(timed: Server, path: Path, clock: Clock) -> None:
    gateway = Gateway(path)
    gateway.send(SUBMIT)
    [(connection, _)] = taken(timed, 1)
    for _ in range(3):
        timed.send(connection, LARGE)
    assert timed.congested
    for _ in range(3):
        clock.now += STALL_S - 1
        assert gateway.receive() == LARGE
    timed.send(connection, Outputs([], None, STATS))
    assert gateway.receive() == Outputs([], None, STATS)
    gateway.sock.close()


def test_the_end_of_congestion_wakes_the_loop(timed: Server, path: Path) -> None:
    gateway = Gateway(path)
    gateway.send(SUBMIT)
    [(connection, _)] = taken(timed, 1)
    timed.send(connection, LARGE)
    timed.send(connection, LARGE)
    assert 2 * len(LARGE.message) > CONGESTED_BYTES
    assert timed.take() == []
    assert timed.congested
    gateway.receive()
    for _ in range(100):
        if not timed.congested:
            break
        timed.wait(10)
        timed.take()
    assert not timed.congested
    gateway.sock.close()


def test_a_gateway_that_reads_nothing_is_cut_off(timed: Server, path: Path, clock: Clock) -> None:
    gateway = Gateway(path)
    gateway.send(SUBMIT)
    [(connection, _)] = taken(timed, 1)
    timed.send(connection, Fatal("internal", "x" * 3_000_000))
    for _ in range(100):
        clock.now += STALL_S + 1
        if not timed.connections:
            break
        timed.wait(1)
    assert taken(timed, 1) == [(connection, Gone())]
    gateway.sock.close()
