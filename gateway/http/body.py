"""Reads a request's body: JSON only, of bounded size, in bounded time."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.types import Receive, Scope

from gateway.errors import ApiError
from gateway.http.race import ClientGone
from gateway.services import HttpSettings


async def read_body(scope: Scope, receive: Receive, settings: HttpSettings) -> bytes:
    headers = Headers(scope=scope)
    _check_headers(headers, settings.max_body_bytes)
    try:
        async with asyncio.timeout(settings.body_timeout_s):
            return await _receive_all(receive, settings.max_body_bytes)
    except TimeoutError:
        message = f"The body was not received within {settings.body_timeout_s:g} s."
        raise ApiError(408, message, type="timeout_error", code="request_timeout") from None


def _check_headers(headers: Headers, max_bytes: int) -> None:
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        message = "The body must be JSON, with the header 'Content-Type: application/json'."
        raise ApiError(415, message, code="unsupported_media_type")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "A compressed body is not supported.", code="unsupported_media_type")
    length = headers.get("content-length", "")
    if length.isascii() and length.isdigit() and int(length[:20]) > max_bytes:
        raise _too_large(max_bytes)


async def _receive_all(receive: Receive, max_bytes: int) -> bytes:
    chunks, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > max_bytes:
            raise _too_large(max_bytes)
        chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks)


def _too_large(max_bytes: int) -> ApiError:
    # The rest of the body stays unread, so this connection can carry no further request.
    headers = {"connection": "close"}
    return ApiError(413, f"The body is larger than {max_bytes} bytes.", code="request_too_large", headers=headers)
