"""The feed of a server, wherever it is, one event after another."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from contextlib import closing
from urllib.parse import urlsplit

import msgspec

from gateway.dashboard.types import Event

PATH = "/dashboard/events"
PATIENCE_S = 40.0  # heart-beats come more often
MAX_LINE_BYTES = 8 << 20
_PREFIX = b"data: "


class FeedError(Exception):
    """There is nothing to show. One line that says why."""


class _Problem(msgspec.Struct):
    message: str


class _Refusal(msgspec.Struct):
    error: _Problem


def read(url: str, key: str) -> Iterator[Event]:
    """Until the server ends it. key "": none is sent. Raises FeedError."""
    with closing(_connection(url)) as connection:
        path = urlsplit(url).path.rstrip("/") + PATH
        try:
            connection.request("GET", path, headers={"authorization": f"Bearer {key}"} if key else {})
            with closing(connection.getresponse()) as response:
                if response.status != 200:
                    raise FeedError(_refusal(url, response))
                yield from _events(response)
        except TimeoutError as error:
            raise FeedError(f"{url} has said nothing for {PATIENCE_S:g} s") from error
        except OSError as error:
            raise FeedError(f"cannot reach {url}: {error.strerror or error}") from error
        except (http.client.HTTPException, msgspec.MsgspecError, UnicodeError) as error:
            raise FeedError(f"{url} does not answer as headrace does: {error!r}") from error


def _connection(url: str) -> http.client.HTTPConnection:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise FeedError(f"--url: {url!r}: {error}") from error
    if parts.scheme not in ("http", "https") or not host:
        raise FeedError(f"--url: expected something like http://127.0.0.1:8000, not {url!r}")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    return kind(host, port, timeout=PATIENCE_S)


def _refusal(url: str, response: http.client.HTTPResponse) -> str:
    try:
        return msgspec.json.decode(response.read(MAX_LINE_BYTES), type=_Refusal).error.message
    except msgspec.MsgspecError:
        return f"{url} answers {response.status} {response.reason}".rstrip()


def _events(response: http.client.HTTPResponse) -> Iterator[Event]:
    decode = msgspec.json.Decoder(Event).decode
    while line := response.readline(MAX_LINE_BYTES):
        if line.startswith(_PREFIX):
            yield decode(line.removeprefix(_PREFIX))
