"""Engines over TCP: who has a certificate is served as over a unix socket, everybody else is refused and costs
nothing."""

import logging
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import pytest

from engine import door
from engine.door import TlsDoor
from engine.server import Server
from gateway.cluster import certificates
from gateway.cluster.certificates import Sides, make_credentials
from gateway.engines.tls import client_context
from scheduler.protocol import (
    ENGINE_NAME,
    GATEWAY_NAME,
    Credentials,
    Output,
    Outputs,
    Progress,
    StepRecord,
    Submit,
    Tcp,
)
from scheduler.types import SamplingParams
from tests.engine.test_server import STATS, SUBMIT, Gateway, taken

HOST = "127.0.0.1"


@pytest.fixture(scope="module")
def sides() -> Sides:
    return make_credentials(datetime.now(UTC))


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tls_door(sides: Sides, clock: Clock) -> TlsDoor:
    return TlsDoor(Tcp(HOST, 0, sides.engine), clock)


@pytest.fixture
def server(tls_door: TlsDoor) -> Iterator[Server]:
    server = Server(tls_door, pulse_s=0.02)
    yield server
    server.close(10)


class TlsGateway(Gateway):
    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        super().__init__(socket.create_connection((HOST, port), timeout=10))
        self.sock = context.wrap_socket(self.sock, server_hostname=ENGINE_NAME)


Connect = Callable[[Credentials], TlsGateway]


@pytest.fixture
def connect(server: Server, tls_door: TlsDoor) -> Iterator[Connect]:
    opened: list[TlsGateway] = []

    def connected(credentials: Credentials) -> TlsGateway:
        opened.append(TlsGateway(tls_door.port, client_context(credentials)))
        return opened[-1]

    yield connected
    for gateway in opened:
        gateway.sock.close()


def ended(sock: socket.socket) -> bool:
    """The other side has closed, with a word or without."""
    try:
        return sock.recv(1) == b""
    except OSError as error:
        return not isinstance(error, TimeoutError)


def test_frames_go_both_ways(server: Server, connect: Connect, sides: Sides) -> None:
    server.broadcast(Progress("weights", 1, 2))
    gateway = connect(sides.gateway)
    assert gateway.receive() == Progress("weights", 1, 2)
    gateway.send(SUBMIT)
    [(connection, message)] = taken(server, 1)
    assert message == SUBMIT
    server.send(connection, Progress("more", 0, 0))
    assert gateway.receive() == Progress("more", 0, 0)


def test_what_is_larger_than_a_record_arrives_whole(server: Server, connect: Connect, sides: Sides) -> None:
    """16 KiB are a record: several of them, in one write of the other side, one after another in the selector."""
    gateway = connect(sides.gateway)
    large = Submit([1], list(range(200_000)), SamplingParams(max_tokens=4), [0])
    gateway.send(large, SUBMIT)
    assert [message for _, message in taken(server, 2)] == [large, SUBMIT]


def test_a_slow_reader_gets_everything_in_order(server: Server, connect: Connect, sides: Sides) -> None:
    """More than socket buffers hold: writes that were not taken whole go on where they were."""
    gateway = connect(sides.gateway)
    gateway.send(SUBMIT)
    [(connection, _)] = taken(server, 1)
    frames = [Progress(f"{number}" * 10_000, number, 0) for number in range(800)]

    def send() -> None:
        for frame in frames:
            server.send(connection, frame)

    sending = threading.Thread(target=send)
    sending.start()
    sending.join(10)
    assert [gateway.receive() for _ in frames] == frames


def test_reading_and_sending_at_the_same_time(server: Server, connect: Connect, sides: Sides) -> None:
    """Of the same connection, from the step loop's thread and from the I/O thread."""
    gateway = connect(sides.gateway)
    gateway.send(SUBMIT)
    [(connection, _)] = taken(server, 1)
    sending = threading.Thread(target=lambda: [gateway.send(SUBMIT) for _ in range(500)])
    sending.start()
    step = Outputs([Output(7, [1, 2, 3], None)], [StepRecord("decode", 1, 1, 0.1)], STATS)
    arrived, told = 0, 0
    while arrived < 500:
        server.send(connection, step)
        arrived += len(server.take())
    server.send(connection, Progress("last", 0, 0))
    while (message := gateway.receive()) != Progress("last", 0, 0):
        assert isinstance(message, Outputs)
        told += len(message.outputs[0].tokens)
    sending.join(10)
    assert told and told % 3 == 0


@pytest.mark.parametrize("who", ["nobody", "another authority", "an engine"])
def test_who_has_no_certificate_of_a_gateway_is_refused(
    who: str, server: Server, connect: Connect, sides: Sides, tls_door: TlsDoor, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    other = make_credentials(datetime.now(UTC)).gateway
    if who == "nobody":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=sides.gateway.authority)
    else:
        shown = sides.engine if who == "an engine" else replace_authority(other, sides.gateway.authority)
        context = client_context(shown)
    stranger = TlsGateway(tls_door.port, context)
    with stranger.sock:
        assert ended(stranger.sock)
    wait_for("refused a connection of 127.0.0.1", caplog)
    assert server.connections == []
    gateway = connect(sides.gateway)
    gateway.send(SUBMIT)
    assert len(taken(server, 1)) == 1


@pytest.mark.parametrize(
    ("name", "let_in"), [(GATEWAY_NAME, True), (ENGINE_NAME, True), ("billing.example.com", False)]
)
def test_of_an_authority_that_signs_for_others_too_only_gateways_are_let_in(
    name: str, let_in: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An operator's certificate for both sides has the name of engines."""
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(certificates, "GATEWAY_NAME", name)
    sides = make_credentials(datetime.now(UTC))
    tls_door = TlsDoor(Tcp(HOST, 0, sides.engine))
    server = Server(tls_door, pulse_s=0.02)
    gateway = TlsGateway(tls_door.port, client_context(sides.gateway))
    with closing(gateway.sock):
        if let_in:
            gateway.send(SUBMIT)
            assert len(taken(server, 1)) == 1
        else:
            assert ended(gateway.sock)
            wait_for("its certificate has none of the names headrace-engine and headrace-gateway", caplog)
    server.close(10)


def wait_for(words: str, caplog: pytest.LogCaptureFixture) -> None:
    """The stranger hears of it before the log does."""
    deadline = time.monotonic() + 10
    while words not in caplog.text:
        assert time.monotonic() < deadline, caplog.text
        time.sleep(0.01)


def replace_authority(credentials: Credentials, authority: str) -> Credentials:
    return Credentials(credentials.certificate, credentials.key, authority)


def test_a_gateway_refuses_an_engine_of_another_authority(connect: Connect) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        connect(make_credentials(datetime.now(UTC)).gateway)


def test_who_speaks_no_tls_is_refused(server: Server, tls_door: TlsDoor, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_connection((HOST, tls_door.port), timeout=10) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert ended(stranger)
    wait_for("http request", caplog)


def test_who_says_nothing_is_let_go(
    server: Server, tls_door: TlsDoor, clock: Clock, connect: Connect, sides: Sides
) -> None:
    with socket.create_connection((HOST, tls_door.port), timeout=10) as silent:
        connect(sides.gateway).send(SUBMIT)  # one in the door keeps nobody out
        assert len(taken(server, 1)) == 1
        clock.now += door.HANDSHAKE_S
        assert ended(silent)


def test_the_oldest_makes_room(
    server: Server, tls_door: TlsDoor, connect: Connect, sides: Sides, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "MAX_HANDSHAKES", 2)
    silent = [socket.create_connection((HOST, tls_door.port), timeout=10) for _ in range(3)]
    try:
        assert ended(silent[0])
        connect(sides.gateway).send(SUBMIT)
        assert len(taken(server, 1)) == 1
    finally:
        for sock in silent:
            sock.close()


def test_one_that_made_room_is_passed_over_in_the_rest_of_the_batch(
    tls_door: TlsDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "MAX_HANDSHAKES", 1)
    address = (HOST, tls_door.port)
    with selectors.DefaultSelector() as selector:
        newcomers = selector.register(tls_door.listener, selectors.EVENT_READ)
        with socket.create_connection(address, timeout=10) as first:
            tls_door.turn(selector, newcomers)
            first.sendall(b"GET / HTTP/1.1\r\n\r\n")
            with socket.create_connection(address, timeout=10):
                while len(batch := [key for key, _ in selector.select(10)]) < 2:
                    assert batch, "nothing comes"
                batch.sort(key=lambda key: key is not newcomers)
                assert [tls_door.turn(selector, key) for key in batch] == [None, None]
                assert ended(first)
                tls_door.close(selector)


def test_a_fault_of_one_is_not_the_end_of_all(
    server: Server, connect: Connect, sides: Sides, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    turn, faults = TlsDoor.turn, [ValueError("a fault")]

    def faulty(*args: Any) -> Any:
        if faults:
            raise faults.pop()
        return turn(*args)

    monkeypatch.setattr(TlsDoor, "turn", faulty)
    connect(sides.gateway).send(SUBMIT)
    assert len(taken(server, 1)) == 1
    assert "ValueError: a fault" in caplog.text


def test_keys_are_in_no_text_of_a_configuration(sides: Sides) -> None:
    tcp = Tcp(HOST, 0, sides.engine)
    assert "PRIVATE" in sides.engine.key and "PRIVATE" not in f"{tcp} {tcp!r} {sides.engine!s}"
