"""Real Hypercorn on a loopback port, spoken to over raw sockets: opening, draining, every way to hang at the end."""

import asyncio
import logging
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from gateway.http import lifecycle
from gateway.http.drain import Drain
from gateway.http.ending import Signals, end_stragglers
from gateway.http.lifecycle import Server
from gateway.http.port import BindError, bind, shown

PATIENCE_S = 60.0


class House:
    """A server whose app streams until it is told to stop, as ours does."""

    def __init__(self, drain_timeout_s: float = PATIENCE_S) -> None:
        self.drain = Drain()
        self.signals = Signals()
        self.opened = asyncio.Event()
        self.finish = asyncio.Event()  # lets streams end by themselves
        self.ended: list[str] = []
        self.listener = bind("127.0.0.1", 0)
        self.address: tuple[str, int] = self.listener.getsockname()
        routes = [Route("/hello", self.hello), Route("/stream", self.stream), Route("/flood", self.flood)]
        self.server = Server(
            app=Starlette(routes=[*routes, Route("/upload", self.upload, methods=["POST"])]),
            listener=self.listener,
            drain=self.drain,
            signals=self.signals,
            drain_timeout_s=drain_timeout_s,
            watch=asyncio.Event().wait,
        )

    async def hello(self, request: Request) -> Response:
        if self.drain.draining:
            return PlainTextResponse("draining", 503)
        return PlainTextResponse("hello")

    async def upload(self, request: Request) -> Response:
        await request.body()
        return PlainTextResponse("thanks")

    async def stream(self, request: Request) -> Response:
        async def chunks() -> AsyncIterator[bytes]:
            with self.drain.request():
                yield b"first"
                forced = asyncio.create_task(self.drain.wait_forced())
                finish = asyncio.create_task(self.finish.wait())
                await asyncio.wait({forced, finish}, return_when=asyncio.FIRST_COMPLETED)
                forced.cancel()
                finish.cancel()
                yield b"cut" if self.drain.forced else b"last"

        return StreamingResponse(chunks())

    async def flood(self, request: Request) -> Response:
        async def chunks() -> AsyncIterator[bytes]:
            with self.drain.request():
                while True:
                    yield b"x" * (1 << 20)

        return StreamingResponse(chunks())

    async def run(self) -> int:
        async with asyncio.timeout(PATIENCE_S):
            return await self.server.run(self.opened.set)


class Wire:
    """A client that does exactly what a test says."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def ask(self, path: str, method: str = "GET", more: str = "") -> None:
        self.writer.write(f"{method} {path} HTTP/1.1\r\nhost: test\r\n{more}\r\n".encode())

    async def until(self, text: bytes) -> bytes:
        async with asyncio.timeout(PATIENCE_S):
            return await self.reader.readuntil(text)

    async def rest(self) -> bytes:
        async with asyncio.timeout(PATIENCE_S):
            return await self.reader.read()


@asynccontextmanager
async def running(house: House) -> AsyncIterator[tuple[asyncio.Task[int], Callable[[], Awaitable[Wire]]]]:
    task = asyncio.create_task(house.run())
    await house.opened.wait()
    writers: list[asyncio.StreamWriter] = []

    async def connect() -> Wire:
        reader, writer = await asyncio.open_connection(*house.address)
        writers.append(writer)
        return Wire(reader, writer)

    try:
        yield task, connect
    finally:
        for event in (house.signals.stop, house.signals.hurry):
            event.set()
        await asyncio.wait({task})
        for writer in writers:
            writer.transport.abort()


async def streaming(wire: Wire) -> None:
    wire.ask("/stream")
    await wire.until(b"first\r\n")


async def test_nothing_is_accepted_before_the_server_runs() -> None:
    house = House()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*house.address)
    async with running(house) as (_, connect):
        wire = await connect()
        wire.ask("/hello")
        assert b"200" in await wire.until(b"hello")


async def test_a_connection_that_its_client_closed_is_closed_at_once() -> None:
    """Not only after the keep-alive time: each would hold a descriptor for so long."""
    house = House()
    async with running(house) as (_, connect):
        silent, served, busy = await connect(), await connect(), await connect()
        served.ask("/hello")
        await served.until(b"hello")
        await streaming(busy)
        for wire in (silent, served, busy):
            wire.writer.write_eof()
            await wire.rest()


async def test_a_drain_refuses_new_work_waits_for_the_old_and_exits_0() -> None:
    house = House()
    async with running(house) as (task, connect):
        stream, idle = await connect(), await connect()
        await streaming(stream)
        house.signals.receive(signal.SIGTERM)
        idle.ask("/hello")
        assert b"503" in await idle.until(b"draining")
        assert not task.done()
        house.finish.set()
        assert b"last" in await stream.rest()
        assert await task == 0


async def test_a_stream_over_the_time_given_is_told_and_ended() -> None:
    house = House(drain_timeout_s=0.01)
    async with running(house) as (task, connect):
        stream = await connect()
        await streaming(stream)
        house.signals.receive(signal.SIGTERM)
        assert (await stream.rest()).endswith(b"3\r\ncut\r\n0\r\n\r\n")
        assert await task == 0


async def test_a_second_signal_ends_at_once() -> None:
    house = House()
    async with running(house) as (task, connect):
        stream = await connect()
        await streaming(stream)
        house.signals.receive(signal.SIGTERM)
        await asyncio.sleep(0)
        house.signals.receive(signal.SIGINT)
        assert await task == 128 + signal.SIGINT
    assert not house.drain.forced


async def test_idle_connections_do_not_hold_the_end() -> None:
    house = House()
    async with running(house) as (task, connect):
        wires = [await connect() for _ in range(3)]
        for wire in wires[1:]:  # one has not asked anything yet
            wire.ask("/hello")
            await wire.until(b"hello")
        house.signals.receive(signal.SIGTERM)
        assert await task == 0
        assert [await wire.rest() for wire in wires] == [b"", b"", b""]


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """A second signal takes the process's handlers away; pytest wants its own back."""
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CLOSE_S", "LAST_ERRORS_S", "STRAGGLER_S"):
        monkeypatch.setattr(lifecycle, name, 0.05)


@pytest.mark.usefixtures("hurried")
async def test_half_a_request_does_not_hold_the_end() -> None:
    house = House()
    async with running(house) as (task, connect):
        wire = await connect()
        wire.ask("/upload", "POST", "content-length: 100\r\nexpect: 100-continue\r\n")
        await wire.until(b"100")
        house.signals.receive(signal.SIGTERM)
        assert await task == 0


@pytest.mark.usefixtures("hurried")
def test_a_client_that_reads_nothing_does_not_hold_the_end() -> None:
    """With a loop of its own: its last tasks are part of what is tested."""

    async def scene() -> int:
        house = House(drain_timeout_s=0.01)
        async with running(house) as (task, connect):
            wire = await connect()
            wire.writer.transport.pause_reading()  # type: ignore[attr-defined]
            wire.ask("/flood")
            while house.drain.open_requests == 0:
                await asyncio.sleep(0)
            house.signals.receive(signal.SIGTERM)
            await asyncio.wait({task})
            code = task.result()
            await end_stragglers()
            assert asyncio.all_tasks() == {asyncio.current_task()}
        return code

    assert asyncio.run(scene()) == 0


@pytest.mark.usefixtures("hurried")
async def test_a_server_that_waits_for_ever_to_close_does_not_hold_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Python 3.12 and later do while a connection is open, before Hypercorn applies its own limit."""

    async def for_ever(server: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr("asyncio.base_events.Server.wait_closed", for_ever)
    house = House()
    async with running(house) as (task, connect):
        wire = await connect()
        wire.ask("/hello")
        await wire.until(b"hello")
        house.signals.receive(signal.SIGTERM)
        assert await task == 0


async def test_a_fault_of_the_supervisor_ends_the_server() -> None:
    house = House()
    fault: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    house.server = Server(
        app=house.server.app,
        listener=house.listener,
        drain=house.drain,
        signals=house.signals,
        drain_timeout_s=1,
        watch=lambda: fault,
    )
    async with running(house) as (task, _):
        fault.set_exception(RuntimeError("a bug"))
        with pytest.raises(RuntimeError, match="a bug"):
            await task


async def test_headers_over_the_limit_are_refused() -> None:
    async with running(House()) as (_, connect):
        wire = await connect()
        wire.writer.write(b"GET /hello HTTP/1.1\r\nx-long: " + b"y" * lifecycle.MAX_HEADER_BYTES)
        assert b"431" in await wire.rest()


async def test_neither_access_lines_nor_a_server_header_come_from_hypercorn(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with running(House()) as (_, connect):
        wire = await connect()
        wire.ask("/hello", more="connection: close\r\n")
        assert b"server:" not in (await wire.rest()).lower()
    assert [record for record in caplog.records if record.name.startswith("hypercorn")] == []


async def test_signals_reach_the_process() -> None:
    signals = Signals()
    signals.install()
    try:
        signal.raise_signal(signal.SIGTERM)
        async with asyncio.timeout(PATIENCE_S):
            await signals.stop.wait()
        assert signals.exit_code == 0
    finally:
        for each in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().remove_signal_handler(each)


def test_a_busy_port_is_one_line_with_host_and_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BindError, match=f"^cannot listen on 127.0.0.1:{port}: Address already in use$"):
            bind("127.0.0.1", port)


async def test_a_port_lost_between_bind_and_listen_is_one_line_too() -> None:
    house = House()
    with socket.socket() as faster:
        faster.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        faster.bind(house.address)
        faster.listen()
        with pytest.raises(BindError, match="Address already in use"):
            await house.run()
    house.listener.close()


def test_a_host_that_is_none_is_named() -> None:
    with pytest.raises(BindError, match=r"^cannot listen on no\.such\.host\.invalid:1: "):
        bind("no.such.host.invalid", 1)


def test_addresses_are_shown_as_in_a_url() -> None:
    assert (shown("127.0.0.1", 80), shown("::1", 80)) == ("127.0.0.1:80", "[::1]:80")
