"""When bytes came: also those that lay in the kernel while the event loop was busy, of connections not yet accepted."""

import asyncio
import json
import socket
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.http.connections import Times
from gateway.http.port import listen
from gateway.http.stamps import (
    MAX_AGE_S,
    ROOM,
    SO_TIMESTAMPNS,
    STAMP,
    StampedListener,
    StampedSocket,
    ask_for_stamps,
    came_at,
)
from gateway.services import Services
from tests.fixtures.fakes import DEADLINE_S, MODEL, FakeEngine, toy_services
from tests.fixtures.wires import serving

PEM = Path(__file__).parent.parent / "bench" / "tls.pem"
BUSY_S = 0.05


@pytest.fixture(scope="module", autouse=True)
def stamping() -> Iterator[None]:
    """Linux begins to stamp packets some time after the first socket on the machine has asked for it, by a thread of
    its own, and ends with the last one: what comes before gets the time at which it is read. A server asks long before
    anybody connects; here it is waited for."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.bind(("127.0.0.1", 0))
        ask_for_stamps(asking)
        until = time.monotonic() + DEADLINE_S
        while True:
            asking.sendto(b"x", asking.getsockname())
            time.sleep(0.01)
            read = time.monotonic()
            if came_at(asking.recvmsg(1, ROOM)[1]) <= read - 0.005:
                break
            assert time.monotonic() < until, "nothing is stamped"
        yield


def stamp(seconds: float) -> list[tuple[int, int, bytes]]:
    return [(socket.SOL_SOCKET, SO_TIMESTAMPNS, STAMP.pack(int(seconds), int(seconds % 1 * 1e9)))]


@pytest.mark.parametrize("age_s", [0.0, 0.25, 30.0])
def test_a_stamp_is_as_old_as_it_says(age_s: float) -> None:
    before, told = time.monotonic(), stamp(time.time() - age_s)
    assert before - age_s - 0.001 <= came_at(told) <= time.monotonic() - age_s + 0.001


@pytest.mark.parametrize("told", [[], stamp(time.time() + 1000), stamp(time.time() - MAX_AGE_S - 1000), [(1, 1, b"x")]])
def test_what_cannot_be_a_stamp_is_now(told: list[tuple[int, int, bytes]]) -> None:
    before = time.monotonic()
    assert before <= came_at(told) <= time.monotonic()


@contextmanager
def accepted(listener: socket.socket, data: bytes) -> Iterator[tuple[StampedSocket, socket.socket]]:
    """A connection over which `data` came BUSY_S before it is accepted, and its other end."""
    listen(listener)
    with StampedListener.of(listener) as stamped, socket.socket(stamped.family) as client:
        client.connect(stamped.getsockname())
        client.sendall(data)
        time.sleep(BUSY_S)
        with stamped.accept()[0] as connection:
            yield connection, client


def tcp() -> socket.socket:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    return listener


def test_bytes_come_before_they_are_read() -> None:
    with accepted(tcp(), b"hello") as (connection, client):
        assert connection.came is None
        read = time.monotonic()
        assert connection.recv(2) == b"he"
        assert connection.came is not None and connection.came <= read - BUSY_S
        buffer = bytearray(8)
        assert connection.recv_into(buffer, 2) == 2 and buffer == b"ll\0\0\0\0\0\0"
        assert connection.recv_into(memoryview(buffer)[4:]) == 1 and buffer[4:5] == b"o"
        assert connection.came <= read - BUSY_S
        client.close()
        assert connection.recv(8) == b""


def test_over_unix_sockets_they_come_when_they_are_read(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "socket"))
    with accepted(listener, b"hello") as (connection, _):
        read = time.monotonic()
        assert connection.recv(8) == b"hello"
        assert connection.came is not None and connection.came >= read


async def test_encrypted_bytes_are_stamped_too() -> None:
    context, trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context(cafile=str(PEM))
    context.load_cert_chain(PEM)
    trusting.check_hostname = False
    found: list[StampedSocket] = []

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        found.append(writer.get_extra_info("socket")._sock)
        writer.write(await reader.readexactly(5))
        await writer.drain()
        writer.close()

    listener = tcp()
    listen(listener)
    async with (
        asyncio.timeout(DEADLINE_S),
        await asyncio.start_server(echo, sock=StampedListener.of(listener), ssl=context) as server,
    ):
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname(), ssl=trusting)
        sent = time.monotonic()
        writer.write(b"hello")
        written = time.monotonic()
        time.sleep(BUSY_S)
        assert await reader.readexactly(5) == b"hello"
        assert found[0].came is not None and sent - 0.001 <= found[0].came <= written + 0.001
        writer.close()


# requests over real connections, to a server on the event loop of the test


@asynccontextmanager
async def timed(engine: FakeEngine | None = None) -> AsyncIterator[tuple[tuple[str, int], Services]]:
    services = replace(toy_services(engine), clock=time.monotonic)
    async with asyncio.timeout(DEADLINE_S), serving(services) as address:
        yield address, services


def asked(name: str, **fields: Any) -> bytes:
    body = json.dumps({"model": MODEL, "prompt": "hi", **fields}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\nx-request-id: {name}\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


async def answered(connection: socket.socket, num_answers: int = 1) -> None:
    """Each is whole, and ends with its usage."""
    seen = b""
    while seen.count(b'"total_tokens"') < num_answers:
        more = await asyncio.get_running_loop().sock_recv(connection, 1 << 16)
        assert more, seen
        seen += more


async def causes(address: tuple[str, int], name: str) -> dict[str, float]:
    """In seconds, once it has ended."""
    async with httpx.AsyncClient(base_url=f"http://{address[0]}:{address[1]}") as client:
        while (told := (await client.get(f"/v1/requests/{name}/timeline")).raise_for_status().json())[
            "outcome"
        ] is None:
            await asyncio.sleep(0)
    assert told["total_ms"] == pytest.approx(sum(each["ms"] for each in told["causes"]), abs=0.001)
    return {each["cause"]: each["ms"] / 1000 for each in told["causes"]}


@pytest.mark.parametrize("stream", [False, True])
async def test_what_lay_unread_while_the_loop_was_busy_is_in_the_timeline(stream: bool) -> None:
    options = {"include_usage": True} if stream else None
    async with timed() as (address, _):
        with socket.create_connection(address) as connection:  # nobody has accepted it yet
            for name in ("first", "second"):
                began = time.monotonic()
                connection.setblocking(True)
                connection.sendall(asked(name, stream=stream, stream_options=options))
                connection.setblocking(False)
                time.sleep(BUSY_S)  # the event loop's time
                await answered(connection)
                spent = await causes(address, name)
                wall_s = time.monotonic() - began
                assert BUSY_S <= spent["event_loop"] <= sum(spent.values()) <= wall_s
                time.sleep(BUSY_S)  # between requests: nobody's


async def test_a_request_behind_another_one_has_come_when_its_bytes_did() -> None:
    engine = FakeEngine(automatic=False)
    async with timed(engine) as (address, _):
        with socket.create_connection(address) as connection:
            connection.sendall(asked("before") + asked("behind"))
            connection.setblocking(False)
            await engine.until(lambda: len(engine.playing) == 1)
            time.sleep(BUSY_S)
            for _ in range(2):
                await engine.until(lambda: len(engine.playing) == 1)
                while engine.playing:
                    engine.step()
            await answered(connection, 2)
            assert (await causes(address, "behind"))["accept"] >= BUSY_S
            assert sum((await causes(address, "before")).values()) >= BUSY_S


async def test_a_head_in_pieces_is_the_client_s_time() -> None:
    async with timed() as (address, _):
        with socket.create_connection(address) as connection:
            data = asked("pieces")
            connection.setblocking(False)
            await asyncio.get_running_loop().sock_sendall(connection, data[:30])
            await asyncio.sleep(BUSY_S)
            await asyncio.get_running_loop().sock_sendall(connection, data[30:])
            await answered(connection)
            spent = await causes(address, "pieces")
            assert spent["receive"] + spent["event_loop"] >= BUSY_S


class Feed:
    """Times of a connection whose socket says what the test wants."""

    def __init__(self) -> None:
        with closing(socket.socket()) as spare:
            self.socket = StampedSocket(fileno=spare.detach())
        self.fed: list[bytes] = []
        self.times = Times(self.fed.append, self.socket)

    def come(self, data: bytes, ago_s: float) -> None:
        self.socket.came = time.monotonic() - ago_s
        self.times.feed_data(data)


@pytest.fixture
def feed() -> Any:
    fed = Feed()
    yield fed
    fed.socket.close()


def test_a_request_begins_with_its_first_bytes(feed: Feed) -> None:
    feed.come(b"\r\n", 90.0)  # behind the body before it
    feed.come(b"GET / ", 60.0)
    feed.come(b"HTTP/1.1\r\n\r\n", 40.0)
    assert feed.fed == [b"\r\n", b"GET / ", b"HTTP/1.1\r\n\r\n"]
    assert feed.times.arrival(interleaved=False).ago_s == pytest.approx(60, abs=10)
    assert feed.times.arrival(interleaved=True).ago_s == pytest.approx(40, abs=10)
    feed.times.ending()
    feed.come(b"GET / HTTP/1.1\r\n\r\n", 20.0)
    arrival = feed.times.arrival(interleaved=False)
    assert (arrival.ago_s, arrival.unread_s) == (pytest.approx(20, abs=10), pytest.approx(20, abs=10))
    assert arrival.sending_s == pytest.approx(0, abs=1e-6)


def test_an_answer_ends_when_its_last_bytes_go(feed: Feed) -> None:
    assert feed.times.idle_s() == 0
    feed.times.wrote(time.monotonic() - 60)
    feed.times.drained()
    assert feed.times.idle_s() == pytest.approx(60, abs=10)
    feed.times.wrote(None)
    feed.times.drained()
    assert feed.times.idle_s() < 10
