"""A running server, wherever it is, as commands ask it: one request, its answer line by line."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from contextlib import closing
from urllib.parse import urlsplit

import msgspec

MAX_LINE_BYTES = 8 << 20


class RemoteError(Exception):
    """There is no answer. One line that says why."""


class _Problem(msgspec.Struct):
    message: str


class _Refusal(msgspec.Struct):
    error: _Problem


def lines(url: str, method: str, path: str, key: str, patience_s: float, body: bytes | None = None) -> Iterator[bytes]:
    """Until the server ends it. key "": none is sent; patience_s: with a server that says nothing; body: of JSON.
    Raises RemoteError, also for an answer that is an error."""
    with closing(_connection(url, patience_s)) as connection:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        if body is not None:
            headers["content-type"] = "application/json"
        try:
            connection.request(method, urlsplit(url).path.rstrip("/") + path, body, headers)
            with closing(connection.getresponse()) as response:
                if response.status != 200:
                    raise RemoteError(_refusal(url, response))
                while line := response.readline(MAX_LINE_BYTES):
                    yield line
        except TimeoutError as error:
            raise RemoteError(f"{url} has said nothing for {patience_s:g} s") from error
        except OSError as error:
            raise RemoteError(f"cannot reach {url}: {error.strerror or error}") from error
        except (http.client.HTTPException, UnicodeError) as error:
            raise stranger(url, error) from error


def stranger(url: str, error: Exception) -> RemoteError:
    return RemoteError(f"{url} does not answer as headrace does: {error!r}")


def _connection(url: str, patience_s: float) -> http.client.HTTPConnection:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise RemoteError(f"--url: {url!r}: {error}") from error
    if parts.scheme not in ("http", "https") or not host:
        raise RemoteError(f"--url: expected something like http://127.0.0.1:8000, not {url!r}")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    return kind(host, port, timeout=patience_s)


def _refusal(url: str, response: http.client.HTTPResponse) -> str:
    try:
        return msgspec.json.decode(response.read(MAX_LINE_BYTES), type=_Refusal).error.message
    except msgspec.MsgspecError:
        return f"{url} answers {response.status} {response.reason}".rstrip()
