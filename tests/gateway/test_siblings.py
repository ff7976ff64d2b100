"""Several gateways: one page of series from many, requests passed on as they came, one port for all."""

import asyncio
import errno
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from gateway.answers.live import Live
from gateway.config import Config
from gateway.engines.client import Death
from gateway.engines.socket import SocketEngine
from gateway.http.drain import Drain
from gateway.http.ending import Signals
from gateway.http.lifecycle import Server
from gateway.http.port import BindError, bind, bind_shared, listen, listen_beside
from gateway.http.ratelimit import Accounts
from gateway.metrics import Metrics
from gateway.siblings import first
from gateway.siblings.first import GONE, GatewayFailed, Siblings
from gateway.siblings.link import Link
from gateway.siblings.messages import LINK, Ask, Charges, Died, Model, Setup, Told, frame, from_sibling, to_sibling
from gateway.siblings.relay import Relay
from gateway.siblings.sums import added, lasting
from gateway.timeline.store import Timelines
from scheduler.protocol import FrameSplitter
from tests.fixtures.engines import PATIENCE_S, ROOT, RecordingObserver
from tests.fixtures.server import Metrics as Page


def page(metrics: Metrics) -> Page:
    return Page.parse(metrics.render()[0].decode())


def busy(requests: int, tokens: int) -> Metrics:
    metrics = Metrics()
    for number in range(requests):
        metrics.request_ended("chat", "stop", 0.2 * (number + 1), f"id-{number}")
        metrics.first_token(0.01, f"id-{number}")
    metrics.tokens(tokens)
    metrics.stream_opened()
    return metrics


# series


def test_what_each_counts_is_added_up() -> None:
    first, second, third = busy(2, 10), busy(3, 100), busy(0, 0)
    alone = [page(each) for each in (first, second, third)]
    first.elsewhere = {1: second.series(), 2: third.series()}
    together = page(first)
    assert together["requests_total{endpoint=chat,outcome=stop}"] == 5
    assert together["generation_tokens_total"] == 110
    assert together["streams_open"] == 3
    for name in set().union(*alone):
        if name.startswith(("ttft_", "e2e_", "requests_", "rejections", "inter_token")):
            assert together[name] == pytest.approx(sum(each[name] for each in alone)), name


def test_engines_are_told_of_once_and_processes_each_by_itself() -> None:
    first, second = Metrics(), Metrics()
    for each in (first, second):
        each.engines[0].engine_up(True)
    first.gateways(2)
    first.elsewhere = {1: second.series()}
    told = page(first)
    assert (told["engine_up"], told["gateways"]) == (1, 2)
    assert told["process_resident_memory_bytes{gateway=0}"] > 0 < told["process_resident_memory_bytes{gateway=1}"]


def test_what_a_gateway_counted_stays_after_its_end_and_what_it_held_does_not() -> None:
    first, second, third = busy(1, 1), busy(2, 20), busy(4, 5)
    gone = added(added([], lasting(second.series())), lasting(third.series()))
    first.elsewhere = {GONE: gone}
    told = page(first)
    assert told["generation_tokens_total"] == 26 and told["requests_total{endpoint=chat,outcome=stop}"] == 7
    assert told["streams_open"] == 1
    assert "process_open_fds{gateway=-1}" not in told


def test_an_exemplar_of_any_gateway_is_shown() -> None:
    first, second = Metrics(), busy(1, 0)
    first.elsewhere = {1: second.series()}
    text = first.render("application/openmetrics-text; version=1.0.0")[0].decode()
    assert 'request_id="id-0"' in text


def test_vllms_names_are_sums_too() -> None:
    first = busy(1, 7)
    first.also_as_vllm()
    first.elsewhere = {1: busy(1, 5).series()}
    assert page(first)["vllm:generation_tokens_total{model_name=}"] == 12


def test_messages_come_as_they_went() -> None:
    splitter = FrameSplitter()
    told, charged = Told(busy(2, 3).series()), Charges(2, [])
    assert [from_sibling.decode(body) for body in splitter.feed(frame(told) + frame(charged))] == [told, charged]
    asked = Ask(7, "timeline", "req-1", None)
    assert [to_sibling.decode(body) for body in splitter.feed(frame(asked))] == [asked]


def test_how_an_engine_ended_is_passed_to_its_client(tmp_path: Path) -> None:
    engine = SocketEngine(RecordingObserver())
    engine.death = Death("It is gone.", 2)
    Link(1, tmp_path, Metrics(), Accounts(), Timelines(1), [engine], Live())._take(Died(0, from_outside=True))
    assert engine.death.explained.is_set() and engine.death.from_outside


# processes

SERVES = """
import socket, sys, time
from gateway.siblings.messages import Hello, Prepared, frame
sys.stdin.readline()
link = socket.socket(socket.AF_UNIX)
link.connect(sys.argv[1])
link.sendall(frame(Hello(1)) + frame(Prepared()))
time.sleep(600)
"""


def siblings_of(folder: Path, *command: str) -> Siblings:
    def setup(number: int) -> Setup:
        return Setup(number, Config(), "127.0.0.1", 0, str(folder), Model("", "dummy", "toy"), 1)

    return Siblings(setup, 2, folder, Metrics(), {**os.environ, "PYTHONPATH": str(ROOT)}, command)


async def test_one_that_cannot_be_started_at_first_is_named(tmp_path: Path) -> None:
    siblings = siblings_of(tmp_path, "/nowhere/gateway")
    with pytest.raises(GatewayFailed, match=r"gateway 1 cannot be started \(No such file or directory\)"):
        await siblings.start()
    await siblings.close(0.0)


async def test_one_that_cannot_be_started_again_is_tried_until_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(first, "FIRST_DELAY_S", 0.01)
    siblings = siblings_of(tmp_path, sys.executable, "-c", SERVES, str(tmp_path / LINK))
    await siblings.start()
    (sibling,) = siblings._siblings.values()
    real, process, lacking = asyncio.create_subprocess_exec, sibling.process, [OSError(errno.EMFILE, "none left")] * 2

    async def lacks(*args: Any, **kwargs: Any) -> asyncio.subprocess.Process:
        if lacking:
            raise lacking.pop()
        return await real(*args, **kwargs)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", lacks)
    assert process is not None
    process.kill()
    async with asyncio.timeout(PATIENCE_S):
        await process.wait()
        while sibling.prepared.is_set():
            await asyncio.sleep(0.01)
        await sibling.prepared.wait()
    await siblings.close(PATIENCE_S)
    assert len([each for each in caplog.messages if "cannot be started (none left)" in each]) == 2


async def test_the_end_does_not_wait_for_one_that_is_to_be_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(first, "FIRST_DELAY_S", 600.0)
    siblings = siblings_of(tmp_path, sys.executable, "-c", SERVES, str(tmp_path / LINK))
    await siblings.start()
    (sibling,), (keeper,) = siblings._siblings.values(), siblings._keepers
    assert sibling.process is not None
    sibling.process.kill()
    async with asyncio.timeout(PATIENCE_S):
        while sibling.process is not None:
            await asyncio.sleep(0.01)
        siblings.stop()
        await siblings.close(PATIENCE_S)
    assert keeper.done() and not keeper.cancelled()


# requests that are passed on


async def told(request: Request) -> Response:
    body = await request.body()
    seen = {"method": request.method, "target": str(request.url.path) + "?" + request.url.query}
    return Response(body, 201, headers={**seen, "x-key": request.headers.get("authorization", "")})


async def streamed(request: Request) -> Response:
    async def pieces() -> AsyncIterator[bytes]:
        for number in range(3):
            yield b"%d" % number
            await asyncio.sleep(0.01)

    return StreamingResponse(pieces(), media_type="text/event-stream")


class Endless:
    def __init__(self) -> None:
        self.ended = asyncio.Event()

    async def answer(self, request: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            try:
                while True:
                    yield b"more"
                    await asyncio.sleep(0.01)
            finally:
                self.ended.set()

        return StreamingResponse(pieces())


@asynccontextmanager
async def served(app: ASGIApp, folder: Path) -> AsyncIterator[Path]:
    """On a unix socket, by Hypercorn, as the first gateway is."""
    path, signals = folder / "http.sock", Signals()
    server = Server(app, bind("127.0.0.1", 0), Drain(), signals, 1.0, asyncio.Event().wait, listen_beside(path))  # type: ignore[arg-type]
    running = asyncio.create_task(server.run(lambda: None))
    try:
        yield path
    finally:
        signals.stop.set()
        await running


def client(relay: Relay) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=relay), base_url="http://test")


async def own(scope: object, receive: object, send: object) -> None:
    await PlainTextResponse("own")(scope, receive, send)  # type: ignore[arg-type]


async def test_a_request_and_its_answer_pass_as_they_are(tmp_path: Path) -> None:
    routes = [
        Route("/v1/responses/{id}", told, methods=["GET", "POST", "DELETE"]),
        Route("/dashboard/events", streamed),
    ]
    async with served(Starlette(routes=routes), tmp_path) as path, client(Relay(own, path)) as http:  # type: ignore[arg-type]
        body = b"x" * 300_000
        answer = await http.post("/v1/responses/a%20b?c=d", content=body, headers={"authorization": "Bearer k"})
        assert (answer.status_code, answer.content) == (201, body)
        assert answer.headers["target"] == "/v1/responses/a b?c=d" and answer.headers["x-key"] == "Bearer k"
        assert (await http.delete("/v1/responses/1")).headers["method"] == "DELETE"
        assert (await http.get("/v1/responses/1")).content == b""
        assert (await http.get("/dashboard/events")).text == "012"
        assert (await http.get("/dashboard/nothing")).status_code == 404
        assert (await http.get("/v1/models")).text == "own"
        assert (await http.get("/metricsandmore")).text == "own"


async def test_who_leaves_is_gone_for_the_first_gateway_too(tmp_path: Path) -> None:
    endless = Endless()
    async with served(Starlette(routes=[Route("/dashboard", endless.answer)]), tmp_path) as path:
        began, left = asyncio.Event(), asyncio.Event()
        asked = [{"type": "http.request", "body": b"", "more_body": False}]

        async def send(message: object) -> None:
            began.set()

        async def receive() -> dict[str, object]:
            if asked:
                return asked.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        scope = {"type": "http", "method": "GET", "path": "/dashboard", "headers": [], "query_string": b""}
        passing = asyncio.create_task(Relay(own, path)(scope, receive, send))  # type: ignore[arg-type]
        async with asyncio.timeout(10):
            await began.wait()
            left.set()
            await endless.ended.wait()
            await passing


async def test_a_first_gateway_that_goes_while_a_body_comes_is_no_client_that_left(tmp_path: Path) -> None:
    async def go(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.abort()

    async def body() -> AsyncIterator[bytes]:
        for _ in range(1000):
            yield b"x" * 100_000

    async with (
        await asyncio.start_unix_server(go, tmp_path / "http.sock"),
        client(
            Relay(own, tmp_path / "http.sock")  # type: ignore[arg-type]
        ) as http,
    ):
        answer = await http.post("/v1/responses", content=body())
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "gateway_unavailable")


async def test_without_a_first_gateway_that_is_told(tmp_path: Path) -> None:
    async with client(Relay(own, tmp_path / "nothing.sock")) as http:  # type: ignore[arg-type]
        answer = await http.get("/metrics")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "gateway_unavailable")
    assert answer.headers["retry-after"] == "1"


# the port


def test_several_share_a_port_which_others_do_not_get() -> None:
    with bind_shared("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with bind("127.0.0.1", port, shared=True) as second:
            listen(first)
            listen(second)
            for taken in (bind, bind_shared):
                with pytest.raises(BindError, match="in use"):
                    taken("127.0.0.1", port)
