"""Requests that are answered before their body has come: the next one on the connection is answered too, or the answer
has said that there will be none."""

import json
from contextlib import suppress
from dataclasses import replace

import httpx
import pytest

from gateway.http import unread
from gateway.http.keys import Keys
from gateway.services import Services
from tests.fixtures.fakes import MODEL, toy_services
from tests.fixtures.wires import Client, at_rest, connected, rested, serving

BODY = json.dumps({"model": MODEL, "prompt": "hi"}).encode()
KEY = "authorization: Bearer sk-one\r\n"


@pytest.fixture
def services() -> Services:
    made = toy_services(max_body_bytes=900)
    return replace(made, keys=Keys("sk-one", None, made.clock))


def head(path: str = "/v1/completions", more: str = "", length: int = len(BODY)) -> bytes:
    text = f"POST {path} HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n{more}"
    return text.encode() + b"\r\n"


async def answered(client: Client) -> tuple[int, dict[str, str], bytes]:
    lines = (await client.until(b"\r\n\r\n")).decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)}
    size = int(headers["content-length"])
    while len(client.read) < size:
        await client.more()
    body, client.read = client.read[:size], client.read[size:]
    return int(lines[0].split()[1]), headers, body


@pytest.mark.parametrize(
    ("refused", "status"),
    [
        (head(), 401),
        (head("/nowhere", KEY), 404),
        (head("/health", KEY), 405),
        (head(more=KEY).replace(b"application/json", b"text/plain"), 415),
    ],
)
async def test_a_body_that_comes_late_leaves_its_connection_usable(
    services: Services, refused: bytes, status: int
) -> None:
    async with serving(services) as address, connected(address) as client:
        for _ in range(2):
            await client.send(refused)
            await client.send(BODY[:5])
            assert not await client.readable(0.05)  # it waits for what is left
            await client.send(BODY[5:])
            found, headers, _ = await answered(client)
            assert found == status and "connection" not in headers
        await client.send(head(more=KEY) + BODY)
        found, _, body = await answered(client)
        assert found == 200 and json.loads(body)["choices"]


async def test_a_body_that_does_not_come_ends_its_connection(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unread, "LEFT_S", 0.01)
    async with serving(services) as address, connected(address) as client:
        await client.send(head() + BODY[:5])
        found, headers, body = await answered(client)
        assert found == 401 and headers["connection"] == "close" and json.loads(body)["error"]
        assert await client.rest() == b""


@pytest.mark.parametrize("framing", ["length", "chunks"])
async def test_a_long_body_is_not_read_to_its_end(services: Services, framing: str) -> None:
    async with serving(services) as address, connected(address) as client:
        if framing == "length":
            await client.send(head(length=10_000_000) + b" " * 100_000)
        else:
            said = head().replace(f"content-length: {len(BODY)}".encode(), b"transfer-encoding: chunked")
            await client.send(said + b"186a0\r\n" + b" " * 100_000)
        found, headers, _ = await answered(client)
        assert found == 401 and headers["connection"] == "close"


async def test_over_http_2_no_answer_speaks_of_connections(services: Services) -> None:
    async with serving(services) as (host, port), httpx.AsyncClient(http1=False, http2=True) as client:
        url = f"http://{host}:{port}/v1/completions"
        for headers, body, status in (
            ({}, {"model": MODEL}, 401),
            ({"authorization": "Bearer sk-one"}, {"model": "x" * 1000}, 413),
            ({"authorization": "Bearer sk-one"}, {"model": MODEL, "prompt": "hi"}, 200),
        ):
            answer = await client.post(url, json=body, headers=headers)
            assert (answer.http_version, answer.status_code) == ("HTTP/2", status)


@pytest.mark.parametrize("size", [1000, 5957, 20_000])
@pytest.mark.parametrize("key", ["", KEY])
async def test_of_a_refused_body_in_pieces_nothing_is_left(services: Services, size: int, key: str) -> None:
    """Hypercorn holds ten pieces, and what comes after them waits."""
    chunk = f"{size:x}\r\n".encode() + b" " * size + b"\r\n"
    said = head(more=key).replace(f"content-length: {len(BODY)}".encode(), b"transfer-encoding: chunked")
    async with serving(services) as address:
        rest = await at_rest(address)
        for turn in range(12):
            async with connected(address) as client:
                await client.send(said)
                with suppress(ConnectionError):  # once it has answered, it takes no more
                    for _ in range(turn + 200_000 // size):
                        await client.send(chunk)
                    found, headers, _ = await answered(client)
                    assert found == (413 if key else 401) and headers["connection"] == "close"
        await rested(rest)
        assert services.drain.open_requests == 0
