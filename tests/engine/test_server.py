"""Frames over a real unix socket."""

import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.server import CONGESTED_BYTES, STALL_S, Gone, Server
from scheduler.protocol import (
    LENGTH_BYTES,
    Abort,
    EngineStats,
    Fatal,
    FrameSplitter,
    FromEngine,
    Output,
    Outputs,
    Progress,
    Pulse,
    StepRecord,
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

    def __init__(self, at: Path | socket.socket) -> None:
        """at: where to connect, or a connection."""
        self.sock = _connected(at) if isinstance(at, Path) else at
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


def _connected(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(10)
    try:
        sock.connect(str(path))
    except OSError:
        sock.close()
        raise
    return sock


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


def test_a_pulse_comes_while_the_step_loop_is_busy_and_not_before_there_is_one(path: Path) -> None:
    """Nobody calls anything of the server meanwhile."""
    at: list[Pulse] = []
    server = Server(str(path), pulse=lambda: at[-1] if at else None, pulse_s=0.01)
    gateway = Gateway(path)
    try:
        gateway.sock.settimeout(0.1)
        with pytest.raises(TimeoutError):
            gateway.receive()
        gateway.sock.settimeout(10)
        at.append(Pulse(1.0, None))
        assert gateway.receive() == Pulse(1.0, None)
        at.append(Pulse(2.0, 30.0))
        while gateway.receive() != Pulse(2.0, 30.0):
            pass
    finally:
        gateway.sock.close()
        server.close(10)


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
    server.send(connection, Outputs([], [], STATS))
    assert gateway.receive() == large
    assert gateway.receive() == Outputs([], [], STATS)


NESTED = b"\x93\xa5abort\x91\x07" + b"\x91" * 200_000 + b"\xc0"  # an Abort with a field that nobody knows


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xff\xff\xff\xff",
        b"\x03\0\0\0abc",
        b"GET / HTTP/1.1\r\n\r\n",
        len(NESTED).to_bytes(LENGTH_BYTES, "little") + NESTED,
    ],
    ids=["too long", "no msgpack", "http", "nested deeper than a decoder follows"],
)
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
    server.send(connection, Outputs([], [], STATS))  # to nobody, and no error


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
    timed.send(connection, Outputs([], [], STATS))
    assert gateway.receive() == Outputs([], [], STATS)
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


def test_a_gateway_that_falls_behind_gets_several_steps_in_one_frame(
    server: Server, gateways: Callable[[], Gateway]
) -> None:
    gateway = gateways()
    gateway.send(SUBMIT)
    [(connection, _)] = taken(server, 1)
    record = StepRecord("decode", 200, 200, 0.001)
    num_steps = 300
    for step in range(num_steps):
        outputs = [Output(seq_id, [step], "length" if step == num_steps - 1 else None) for seq_id in range(200)]
        server.send(connection, Outputs(outputs, [record], STATS))
    tokens: dict[int, list[int]] = {seq_id: [] for seq_id in range(200)}
    num_frames = num_records = num_ended = 0
    while num_ended < 200:
        frame = gateway.receive()
        assert isinstance(frame, Outputs)
        num_frames += 1
        num_records += len(frame.steps)
        for output in frame.outputs:
            tokens[output.seq_id] += output.tokens
            num_ended += output.finish is not None
    assert all(got == list(range(num_steps)) for got in tokens.values())
    assert num_records == num_steps
    assert num_frames < num_steps / 4
    server.linger(10)


def test_an_end_that_is_told_to_all_comes_after_what_was_merged(
    server: Server, gateways: Callable[[], Gateway]
) -> None:
    gateway = gateways()
    gateway.send(SUBMIT)
    [(connection, _)] = taken(server, 1)
    for step in range(50):
        server.send(connection, Outputs([Output(seq_id, [step], None) for seq_id in range(500)], [], STATS))
    server.broadcast(Fatal("internal", "an end"))
    num_tokens = 0
    while isinstance(frame := gateway.receive(), Outputs):
        num_tokens += sum(len(output.tokens) for output in frame.outputs)
    assert frame == Fatal("internal", "an end")
    assert num_tokens == 50 * 500
