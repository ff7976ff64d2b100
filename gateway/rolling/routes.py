"""What answers below /admin. A change is told line by line, as JSON, until it has ended."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from gateway.errors import ApiError
from gateway.http import faults
from gateway.http.body import read_body
from gateway.http.exchange import exchange_of
from gateway.http.race import ClientGone, Interrupt, MustStop, Presence
from gateway.http.sse import EventResponse, SendTimeout
from gateway.rolling.change import Change, Refused
from gateway.rolling.rolling import Rolling
from gateway.rolling.types import Engines, UnderWay
from gateway.services import Services

LINES = "application/x-ndjson"
PING_S = 5.0  # between two lines at most
REFUSE_S = 10.0  # that an answer may wait for, to have a status of its own
ENGINE_DIGITS = 4

_encode = msgspec.json.Encoder().encode


class _Admin:
    def __init__(self, services: Services) -> None:
        self._services = services

    def _rolling(self, scope: Scope) -> Rolling:
        """Raises 403."""
        exchange = exchange_of(scope)
        exchange.endpoint = "admin"
        if self._services.rolling is None:
            raise faults.admin_off()
        if self._services.keys is not None and not exchange.is_admin:
            raise faults.not_admin()
        return self._services.rolling


class ShowEngines(_Admin):
    async def answer(self, request: Request) -> Response:
        rolling = self._rolling(request.scope)
        change = rolling.under_way
        shown = Engines(rolling.engines(), None if change is None else UnderWay(change.kind, change.last))
        return Response(_encode(shown), media_type="application/json", headers={"cache-control": "no-store"})


class MakeChange(_Admin):
    """An ASGI application. What has begun goes on without its client."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        services, exchange = self._services, exchange_of(scope)
        rolling = self._rolling(scope)
        if services.drain.draining:
            raise faults.draining(services)
        try:
            change = await self._begin(rolling, Request(scope, receive))
            await change.begun(REFUSE_S)
        except Refused as refusal:
            raise faults.change_refused(refusal) from None
        exchange.stream, exchange.outcome = True, "ok"
        response = EventResponse(
            _lines(change), {"content-type": LINES}, ping_s=0.0, send_timeout_s=services.settings.send_timeout_s
        )
        with (
            suppress(ClientGone, SendTimeout, MustStop, OSError),
            Presence(receive),
            Interrupt() as interrupt,
            services.drain.when_forced(lambda: interrupt.now(MustStop())),
        ):
            await response(scope, receive, send)

    async def _begin(self, rolling: Rolling, request: Request) -> Change:
        raise NotImplementedError


class DrainEngine(MakeChange):
    async def _begin(self, rolling: Rolling, request: Request) -> Change:
        force = request.query_params.get("force", "false").lower() in ("1", "true")
        return rolling.drain(_number(request), force)


class ResumeEngine(MakeChange):
    async def _begin(self, rolling: Rolling, request: Request) -> Change:
        return rolling.resume(_number(request))


class ReloadEngines(MakeChange):
    async def _begin(self, rolling: Rolling, request: Request) -> Change:
        body = await read_body(request.scope, request.receive, self._services.settings)
        return rolling.reload(_options(body))


def _number(request: Request) -> int:
    text: str = request.path_params["engine"]
    if not (text.isascii() and text.isdigit() and len(text) <= ENGINE_DIGITS):
        raise Refused("engine_not_found", "An engine is named by its number, from 0.")
    return int(text)


def _options(body: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(body, type=dict[str, str | bool | int | float])
    except msgspec.MsgspecError as error:
        message = f"The body must be a JSON object of options: {error}."
        raise ApiError(400, message, code="invalid_json") from error


async def _lines(change: Change) -> AsyncGenerator[bytes]:
    async with aclosing(change.lines(PING_S)) as lines:
        async for line in lines:
            yield _encode(line) + b"\n"


def rolling_routes(services: Services) -> list[Route]:
    return [
        Route("/admin/engines", ShowEngines(services).answer),
        Route("/admin/engines/{engine}/drain", DrainEngine(services), methods=["POST"]),
        Route("/admin/engines/{engine}/resume", ResumeEngine(services), methods=["POST"]),
        Route("/admin/reload", ReloadEngines(services), methods=["POST"]),
    ]
