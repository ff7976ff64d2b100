"""A sibling's requests for what only the first gateway has: pages that sum up, and answers that are remembered. They
go to its private socket as they came, and so do their answers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import h11
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.errors import ApiError
from gateway.http.error_shape import error_response

KEPT = ("/metrics", "/stats", "/dashboard", "/debug", "/v1/responses", "/v1/requests", "/admin")  # and all below them
CONNECT_S = 5.0
READ_BYTES = 1 << 16
# Of one connection, not of a request (RFC 9110, 7.6.1). What HTTP/2 calls by other names is there by these as well.
OF_CONNECTIONS = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"expect"}
)
SAID_AGAIN = OF_CONNECTIONS | {b"date"}  # by our own server, in answers
Headers = list[tuple[bytes, bytes]]

_log = logging.getLogger("headrace.siblings")


class BrokenAnswer(Exception):
    """It had begun: only its missing end can tell the client."""


def is_kept(path: str) -> bool:
    return any(path == kept or path.startswith(kept + "/") for kept in KEPT)


class Relay:
    """An ASGI application around another one, which gets all else."""

    def __init__(self, app: ASGIApp, socket: Path) -> None:
        self._app = app
        self._socket = str(socket)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not is_kept(scope["path"]):
            return await self._app(scope, receive, send)
        try:
            async with asyncio.timeout(CONNECT_S):
                reader, writer = await asyncio.open_unix_connection(self._socket)
        except (OSError, TimeoutError):
            return await error_response(_unreachable(), scope)(scope, receive, send)
        try:
            await _Passage(reader, writer, send).run(scope, receive)
        finally:
            writer.transport.abort()


def _unreachable() -> ApiError:
    message = "The gateway that answers this path cannot be reached."
    return ApiError(503, message, type="server_error", code="gateway_unavailable", headers={"retry-after": "1"})


class _Passage:
    """One request and its answer."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, send: Send) -> None:
        self._reader = reader
        self._writer = writer
        self._send = send
        self._http = h11.Connection(h11.CLIENT)
        self._has_begun = False
        self._has_left = False  # the client

    async def run(self, scope: Scope, receive: Receive) -> None:
        self._write(_request(scope))
        asking = asyncio.create_task(self._ask(receive))
        try:
            await self._answer()
        except (h11.RemoteProtocolError, OSError) as error:
            if self._has_left:
                return
            if self._has_begun:
                raise BrokenAnswer from error
            _log.warning("the first gateway did not answer %s: %s", scope["path"], error)
            await error_response(_unreachable(), scope)(scope, receive, self._send)
        finally:
            asking.cancel()

    def _write(self, event: h11.Event) -> None:
        if data := self._http.send(event):
            self._writer.write(data)

    async def _ask(self, receive: Receive) -> None:
        """The body; then, if the client leaves, the end of it all. Who takes no more of a body may have answered."""
        with suppress(h11.LocalProtocolError, OSError):
            while (message := await receive())["type"] != "http.disconnect":
                if self._http.our_state is not h11.SEND_BODY:
                    continue
                if body := message.get("body", b""):
                    self._write(h11.Data(data=body))
                    await self._writer.drain()
                if not message.get("more_body", False):
                    self._write(h11.EndOfMessage())
            self._has_left = True
            self._writer.transport.abort()

    async def _answer(self) -> None:
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                self._http.receive_data(await self._reader.read(READ_BYTES))
            elif isinstance(event, h11.Response):
                self._has_begun = True
                headers = [each for each in event.headers if each[0] not in SAID_AGAIN]
                await self._send({"type": "http.response.start", "status": event.status_code, "headers": headers})
            elif isinstance(event, h11.Data):
                await self._send({"type": "http.response.body", "body": bytes(event.data), "more_body": True})
            elif isinstance(event, h11.EndOfMessage):
                return await self._send({"type": "http.response.body", "body": b"", "more_body": False})
            elif isinstance(event, h11.ConnectionClosed):
                raise h11.RemoteProtocolError("it closed the connection")


def _request(scope: Scope) -> h11.Request:
    target: bytes = scope.get("raw_path") or scope["path"].encode()
    if query := scope.get("query_string"):
        target = target.partition(b"?")[0] + b"?" + query
    return h11.Request(method=scope["method"], target=target, headers=list(_headers(scope)))


def _headers(scope: Scope) -> Iterator[tuple[bytes, bytes]]:
    names = {name.lower() for name, _ in scope["headers"]}
    if b"host" not in names:
        yield b"host", b"headrace"
    yield from ((name, value) for name, value in scope["headers"] if name.lower() not in OF_CONNECTIONS)
    yield b"connection", b"close"
    if b"content-length" not in names and scope["method"] not in ("GET", "HEAD"):
        yield b"transfer-encoding", b"chunked"
