"""What answers below /dashboard: the page, which is the same for everybody, and the events that it shows."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from gateway.dashboard.feed import MAX_VIEWERS, Feed
from gateway.dashboard.files import FILE_ROUTE, PAGE, PageFile, read_file
from gateway.http import faults
from gateway.http.exchange import exchange_of
from gateway.http.race import ClientGone, Presence
from gateway.http.sse import HEADERS, EventResponse, SendTimeout
from gateway.services import Services

ENDPOINT = "dashboard"


class Files:
    def __init__(self) -> None:
        self._read: dict[str, PageFile] = {}

    async def page(self, request: Request) -> Response:
        return await self._answer(request, PAGE)

    async def part(self, request: Request) -> Response:
        name: str = request.path_params["file"]
        if name == PAGE:
            raise HTTPException(404)  # it has one address
        return await self._answer(request, name)

    async def _answer(self, request: Request, name: str) -> Response:
        exchange_of(request.scope).endpoint = ENDPOINT
        file = self._read.get(name) or await asyncio.to_thread(read_file, name)
        if file is None:
            raise HTTPException(404)
        self._read[name] = file
        if file.etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=file.headers())
        return Response(file.content, media_type=file.media_type, headers=file.headers())


class Events:
    """An ASGI application: one stream to one who looks."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._feed = Feed(services)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        services, settings = self._services, self._services.settings
        exchange = exchange_of(scope)
        exchange.endpoint = ENDPOINT
        if services.drain.draining:
            raise faults.draining(services)
        if self._feed.is_full:
            raise faults.too_many_viewers(services, MAX_VIEWERS)
        if scope["method"] == "HEAD":
            return await Response(headers=HEADERS)(scope, receive, send)
        exchange.stream, exchange.outcome = True, "ok"
        with suppress(ClientGone, SendTimeout, OSError), self._feed.viewer() as events, Presence(receive):
            response = EventResponse(events, {}, ping_s=settings.ping_s, send_timeout_s=settings.send_timeout_s)
            await response(scope, receive, send)
        return None


def dashboard_routes(services: Services) -> list[Route]:
    files = Files()
    return [
        Route("/dashboard", files.page),
        Route("/dashboard/events", Events(services), methods=["GET"]),
        Route(FILE_ROUTE, files.part),
    ]
