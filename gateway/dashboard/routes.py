"""What answers below /dashboard: the page, which is the same for everybody, and the events that it shows."""

from __future__ import annotations

from contextlib import suppress

from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from gateway.dashboard.feed import MAX_VIEWERS, Feed
from gateway.dashboard.files import LIVE_PAGE
from gateway.http import faults
from gateway.http.exchange import exchange_of
from gateway.http.page_files import PageFiles
from gateway.http.race import ClientGone, Presence
from gateway.http.sse import HEADERS, EventResponse, SendTimeout
from gateway.services import Services

ENDPOINT = "dashboard"


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
    files = PageFiles(LIVE_PAGE, ENDPOINT)
    return [
        Route(LIVE_PAGE.page_route, files.page),
        Route("/dashboard/events", Events(services), methods=["GET"]),
        Route(LIVE_PAGE.file_route, files.part),
    ]
