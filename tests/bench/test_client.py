"""The client on real connections, with servers that misbehave."""

import asyncio
import contextlib
import json
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bench.answers import read
from bench.client import Answer, Client
from tests.bench.toy import Behaviour, Exchange, Toy, hang, toy, whole

BODY = json.dumps({"prompt": "a b c", "max_tokens": 3}).encode()
PEM = Path(__file__).parent / "tls.pem"


@contextlib.asynccontextmanager
async def client_of(url: str, timeout_s: float = 30.0, api_key: str = "") -> AsyncIterator[Client]:
    client = Client(url, api_key, timeout_s)
    try:
        yield client
    finally:
        client.close()


async def ask(client: Client) -> Answer:
    return await client.ask("POST", "/v1/completions", BODY, 3)


async def failure(behave: Behaviour, timeout_s: float = 30.0) -> str:
    async with toy(behave) as server, client_of(server.url, timeout_s) as client:
        failed = read(await ask(client)).failure
    return failed.name if failed else ""


async def test_tokens_are_those_of_the_server_and_the_connection_is_kept() -> None:
    async with toy() as server, client_of(server.url, api_key="sk-1") as client:
        seen = [read(await ask(client)) for _ in range(3)]
    assert [(one.failure, one.prompt_tokens, one.output_tokens) for one in seen] == [(None, 3, 3)] * 3
    assert server.num_connections == 1
    assert {exchange.headers["authorization"] for exchange in server.asked} == {"Bearer sk-1"}


async def test_requests_at_one_time_have_connections_of_their_own() -> None:
    async def wait_for_all(server: Toy, exchange: Exchange) -> None:
        await server.until(4)
        await whole(server, exchange)

    async with toy(wait_for_all) as server, client_of(server.url) as client:
        seen = await asyncio.gather(*(ask(client) for _ in range(4)))
    assert [read(one).failure for one in seen] == [None] * 4
    assert server.num_connections == 4


async def test_or_each_request_has_a_connection_of_its_own() -> None:
    async with toy() as server:
        client = Client(server.url, "", 30.0, keep_alive=False)
        seen = [read(await ask(client)) for _ in range(3)]
    assert [one.failure for one in seen] == [None] * 3
    assert server.num_connections == 3
    assert {exchange.headers["connection"] for exchange in server.asked} == {"close"}


async def test_a_connection_that_the_server_let_go_of_is_no_failure() -> None:
    async def once(server: Toy, exchange: Exchange) -> None:
        if exchange.number == 2:  # on the kept connection
            exchange.writer.close()
        else:
            await whole(server, exchange)

    async with toy(once) as server, client_of(server.url) as client:
        seen = [read(await ask(client)) for _ in range(2)]
    assert [one.failure for one in seen] == [None, None]
    assert (len(server.asked), server.num_connections) == (3, 2)


async def test_over_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(PEM)
    async with toy(tls=context) as server:
        async with client_of(server.url) as client:
            assert read(await ask(client)).failure.name == "TLS: self-signed certificate"  # type: ignore[union-attr]
        monkeypatch.setenv("SSL_CERT_FILE", str(PEM))
        async with client_of(server.url) as client:
            assert read(await ask(client)).failure is None


async def test_a_server_that_hangs_is_given_up_in_time() -> None:
    assert await failure(hang, timeout_s=0.05) == "timeout after 0.05 s"


async def test_one_that_hangs_within_an_answer_too() -> None:
    async def stall(server: Toy, exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.token()
        await hang(server, exchange)

    assert await failure(stall, timeout_s=0.05) == "timeout after 0.05 s"


async def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    async with client_of(f"http://127.0.0.1:{port}/v1") as client:
        assert (await ask(client)).failure == "connection refused"


async def test_a_host_without_a_name() -> None:
    async with client_of("http://nowhere.invalid/v1") as client:
        assert (await ask(client)).failure.startswith("host not found")


async def test_an_end_without_an_answer() -> None:
    async def leave(server: Toy, exchange: Exchange) -> None:
        exchange.writer.close()

    assert await failure(leave) == "the server hung up without an answer"


async def test_an_end_within_an_answer() -> None:
    async def cut(server: Toy, exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.token()
        exchange.writer.close()

    assert await failure(cut) == "the server hung up within an answer"


async def test_something_else_than_http() -> None:
    async def greet(server: Toy, exchange: Exchange) -> None:
        await exchange.write(b"SSH-2.0-OpenSSH_9.2\r\n")

    assert (await failure(greet)).startswith("not HTTP/1.1")


@pytest.mark.parametrize(
    ("status", "error", "name"),
    [
        (401, {"message": "Wrong key.", "code": "invalid_api_key"}, "HTTP 401 invalid_api_key"),
        (404, {"message": "No such model.", "code": "model_not_found"}, "HTTP 404 model_not_found"),
        (429, {"message": "Later.", "type": "rate_limit_error"}, "HTTP 429 rate_limit_error"),
        (500, {"message": "Oops."}, "HTTP 500"),
    ],
)
async def test_refusals_have_names(status: int, error: dict[str, str], name: str) -> None:
    async def refuse(server: Toy, exchange: Exchange) -> None:
        await exchange.answer(status, {"error": error})

    assert await failure(refuse) == name


async def test_an_endless_answer_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    async def endless(server: Toy, exchange: Exchange) -> None:
        await exchange.begin()
        while True:
            await exchange.token()

    monkeypatch.setattr("bench.client.MAX_ANSWER", 1 << 20)
    assert await failure(endless) == "an answer of more than 1 MiB"
