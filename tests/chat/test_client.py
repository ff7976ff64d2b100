"""The client on real connections, with servers that misbehave."""

import asyncio
import ssl
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import pytest

from chat.client import AskError, Client, Piece, Usage, api_url
from chat.client import UrlError as WrongUrl
from tests.bench.toy import PATIENCE_S, Behaviour, Exchange, Toy, hang, toy, whole

PEM = Path(__file__).parent.parent / "bench" / "tls.pem"
BODY: Mapping[str, object] = {"model": "toy", "messages": [{"role": "user", "content": "hi there"}], "max_tokens": 3}


async def pieces(url: str, key: str = "", silence_s: float = PATIENCE_S) -> list[Piece]:
    return await asyncio.to_thread(lambda: list(Client(url, key, silence_s).ask(BODY)))


async def failure(behave: Behaviour, silence_s: float = PATIENCE_S) -> str:
    async with toy(behave) as server:
        with pytest.raises(AskError) as raised:
            await pieces(server.url, silence_s=silence_s)
    return str(raised.value).replace(server.url, "URL")


async def test_an_answer_and_what_it_took() -> None:
    async with toy() as server:
        seen = await pieces(server.url, key="sk-1")
        (asked,) = server.asked
    assert "".join(piece.text for piece in seen) == " a a a"
    assert seen[-1].usage == Usage(2, 3)
    assert asked.headers["authorization"] == "Bearer sk-1"
    assert asked.body == {**BODY, "stream": True, "stream_options": {"include_usage": True}}


async def test_reasoning_comes_once_whatever_it_is_called() -> None:
    async def reason(server: Toy, exchange: Exchange) -> None:
        await exchange.begin()
        for delta in ({"reasoning": "a", "reasoning_content": "a"}, {"reasoning": "b"}, {"content": "c"}):
            await exchange.write(b"6\r\n: hm\n\n\r\n")  # a heart-beat
            await exchange.event({"choices": [{"delta": delta, "finish_reason": None}]})
        await exchange.end(3)

    async with toy(reason) as server:
        seen = await pieces(server.url)
    assert [(piece.reasoning, piece.text) for piece in seen[:3]] == [("a", ""), ("b", ""), ("", "c")]


async def test_closed_early_the_connection_ends() -> None:
    left = asyncio.Event()

    async def notice(server: Toy, exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.token()
        try:
            while True:
                await exchange.token()
                await asyncio.sleep(0.01)
        except ConnectionError:
            left.set()

    def first(url: str) -> Piece:
        with closing(Client(url, "").ask(BODY)) as answer:
            return next(answer)

    async with toy(notice) as server:
        assert (await asyncio.to_thread(first, server.url)).text == " a"
        await asyncio.wait_for(left.wait(), PATIENCE_S)


async def test_the_models_are_asked_for() -> None:
    async with toy() as server:
        assert await asyncio.to_thread(Client(server.url, "").first_model) == "toy"


async def test_over_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(PEM)
    async with toy(tls=context) as server:
        with pytest.raises(AskError, match="TLS: self-signed certificate"):
            await pieces(server.url)
        monkeypatch.setenv("SSL_CERT_FILE", str(PEM))
        assert len(await pieces(server.url)) == 4


async def test_why_there_is_no_answer() -> None:
    async def openai(server: Toy, exchange: Exchange) -> None:
        await exchange.answer(429, {"error": {"message": "too many\nrequests", "code": "queue_full"}})

    async def fastapi(server: Toy, exchange: Exchange) -> None:
        await exchange.answer(400, {"detail": "Empty message"})

    async def key(server: Toy, exchange: Exchange) -> None:
        await exchange.answer(401, {"error": {"message": "no key was sent"}})

    async def words(server: Toy, exchange: Exchange) -> None:
        await exchange.answer(502, b"<html>")

    async def nothing(server: Toy, exchange: Exchange) -> None:
        exchange.writer.close()

    async def garbage(server: Toy, exchange: Exchange) -> None:
        await exchange.write(b"SSH-2.0\r\n\r\n")
        exchange.writer.close()

    assert await failure(openai) == "too many requests"
    assert await failure(fastapi) == "Empty message"
    assert await failure(key) == "no key was sent (--api-key)"
    assert await failure(words) == "URL answers 502 X"
    assert (await failure(nothing)).startswith("cannot reach URL: Remote end closed connection")
    assert (await failure(garbage)).startswith("URL does not answer as HTTP: BadStatusLine")
    assert await failure(hang, silence_s=0.05) == "URL says nothing"


async def test_why_it_is_not_whole() -> None:
    async def error(server: Toy, exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.token()
        await exchange.event({"error": {"message": "the engine has ended"}})

    async def cut(server: Toy, exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.token()
        exchange.writer.close()

    async def silent(server: Toy, exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.token()
        await hang(server, exchange)

    async def other(server: Toy, exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.event({"choices": 1})

    assert await failure(error) == "the engine has ended"
    assert await failure(cut) == "the server hung up within the answer"
    assert await failure(silent, silence_s=0.05) == "URL says nothing"
    assert (await failure(other)).startswith("an event that is not as OpenAI's")


async def test_an_end_without_done_is_one_where_the_answer_ended() -> None:
    async def ended(server: Toy, exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.event({"choices": [{"delta": {"content": "x"}, "finish_reason": "stop"}]})
        await exchange.write(b"0\r\n\r\n")

    async with toy(ended) as server:
        assert await pieces(server.url) == [Piece("x", finish="stop")]


async def test_nobody_there() -> None:
    async with toy(whole) as server:
        pass
    with pytest.raises(AskError, match=r"cannot reach .*: Connection refused"):
        await pieces(server.url)


def test_urls() -> None:
    assert api_url("http://h:1") == api_url("http://h:1/") == api_url("http://h:1/v1/") == "http://h:1/v1"
    assert api_url("https://h/openai/v2") == "https://h/openai/v2"
    for wrong in (
        "h:1",
        "ftp://h",
        "http://",
        "http://h:0",
        "http://h:x",
        "http://u:p@h",
        "http://h?a=b",
        "http://h/ä",
    ):
        with pytest.raises(WrongUrl):
            api_url(wrong)
