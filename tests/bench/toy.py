"""A server that speaks just enough HTTP/1.1 to be measured, on a real socket, and misbehaves as it is told."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

PATIENCE_S = 30.0  # of a wait that normally takes milliseconds
Behaviour = Callable[["Toy", "Exchange"], Awaitable[None]]


@dataclass
class Exchange:
    """One request, and the way back."""

    method: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    writer: asyncio.StreamWriter
    number: int  # of those for tokens, from 1 on

    async def write(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, status: int, told: object, headers: str = "") -> None:
        body = told if isinstance(told, bytes) else json.dumps(told).encode()
        await self.write(f"HTTP/1.1 {status} X\r\n{headers}content-length: {len(body)}\r\n\r\n".encode() + body)

    async def begin(self) -> None:
        await self.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")

    async def event(self, told: object) -> None:
        data = f"data: {told if isinstance(told, str) else json.dumps(told)}\n\n".encode()
        await self.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    async def token(self) -> None:
        await self.event({"choices": [{"delta": {"content": " a"}} if "messages" in self.body else {"text": " a"}]})

    async def end(self, num_tokens: int) -> None:
        usage = {"prompt_tokens": self.num_prompt_tokens, "completion_tokens": num_tokens}
        await self.event({"choices": [], "usage": usage})
        await self.event("[DONE]")
        await self.write(b"0\r\n\r\n")

    @property
    def num_prompt_tokens(self) -> int:
        messages = self.body.get("messages", [])
        return len(" ".join([self.body.get("prompt", ""), *(message["content"] for message in messages)]).split())


async def whole(toy: Toy, exchange: Exchange) -> None:
    """As many tokens as were asked for."""
    await exchange.begin()
    for _ in range(exchange.body["max_tokens"]):
        await exchange.token()
    await exchange.end(exchange.body["max_tokens"])


async def hang(toy: Toy, exchange: Exchange) -> None:
    """Until the client leaves."""
    await asyncio.Event().wait()


@dataclass
class Toy:
    behave: Behaviour = whole
    url: str = ""
    asked: list[Exchange] = field(default_factory=list)  # for tokens
    num_connections: int = 0
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def until(self, num: int) -> None:
        """So many requests for tokens have come."""
        async with self.changed:
            await asyncio.wait_for(self.changed.wait_for(lambda: len(self.asked) >= num), PATIENCE_S)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        try:
            while not writer.is_closing():
                await self._handle(await self._read(reader, writer))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Exchange:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        method, path, _ = head[0].split(" ")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        return Exchange(method, path, headers, json.loads(body or b"{}"), writer, len(self.asked) + 1)

    async def _handle(self, exchange: Exchange) -> None:
        if exchange.path == "/v1/models":
            await exchange.answer(200, {"data": [{"id": "toy"}]})
        elif not exchange.path.startswith("/v1/"):
            await exchange.answer(404, {"error": {"message": "no such path"}})
        else:
            async with self.changed:
                self.asked.append(exchange)
                self.changed.notify_all()
            await self.behave(self, exchange)


@asynccontextmanager
async def toy(behave: Behaviour = whole, tls: ssl.SSLContext | None = None) -> AsyncIterator[Toy]:
    made, tasks = Toy(behave), set[asyncio.Task[None]]()

    def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.create_task(made.serve(reader, writer)))

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    made.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield made
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
