"""The HTTP application: routes, what surrounds every request, and the one place where errors become responses."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.chat_web.prepare import prepare_chat_web
from gateway.chatpage.routes import chat_page_routes
from gateway.dashboard.routes import dashboard_routes
from gateway.embeddings import prepare_embeddings
from gateway.errors import ApiError
from gateway.http import faults
from gateway.http.connections import Times, times_of
from gateway.http.error_shape import error_response
from gateway.http.exchange import Exchange, exchange_of, request_id
from gateway.http.guard import RATE_LIMIT_HEADERS, Guard
from gateway.http.lag import watch_lag
from gateway.http.profile import TakeProfile
from gateway.http.race import ClientGone
from gateway.http.routes import Generate, Pages
from gateway.http.sse import SendTimeout
from gateway.http.unbuilt import unbuilt_path
from gateway.http.unread import Inbound
from gateway.messages.routes import CountTokens, prepare_messages
from gateway.openapi.routes import docs_routes
from gateway.requests.parse import unbuilt
from gateway.requests.prepare import Workers, prepare_chat, prepare_completion
from gateway.responses.routes import responses_routes
from gateway.rolling.routes import rolling_routes
from gateway.roseinfer.generate import prepare_generate
from gateway.services import Services
from gateway.timeline.laps import Cause, Laps
from gateway.timeline.routes import TimelinePage
from gateway.timeline.store import timeline_of

_log = logging.getLogger("headrace.http")
TRACE_HEADERS = (b"traceparent", b"tracestate")
MIN_SENDING_S = 1e-6  # less is what floats make of one clock's differences
CHUNK_BYTES = 64 << 10  # of a whole answer, for each of which a client has as long as for a piece of a stream
OPENAI_VERSION = b"2020-10-01"  # of the API whose shapes are spoken


def create_app(services: Services) -> Starlette:
    workers = Workers(services.settings.tokenize_threads, services.settings.inline_chars)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        lag = asyncio.create_task(watch_lag(services.metrics.loop_lag))
        yield
        lag.cancel()
        workers.close()

    app = Starlette(
        routes=routes(services, workers),
        middleware=[Middleware(Edge, services=services), *cors(services), *guard(services)],
        exception_handlers={ApiError: api_error, HTTPException: http_error, ClientGone: client_gone},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return app


def routes(services: Services, workers: Workers) -> list[Route]:
    pages = Pages(services, workers)
    chat = Generate(services, workers, "chat", prepare_chat)
    completions = Generate(services, workers, "completions", prepare_completion)
    chat_web = Generate(services, workers, "chat_web", prepare_chat_web)
    embeddings = Generate(services, workers, "embeddings", prepare_embeddings)
    messages = Generate(services, workers, "messages", prepare_messages)
    generate = Generate(services, workers, "generate", prepare_generate)
    return [
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/completions", completions, methods=["POST"]),
        Route("/v1/chat/completions/render", pages.render_chat, methods=["POST"]),
        Route("/v1/completions/render", pages.render_completion, methods=["POST"]),
        Route("/chat/completions", chat_web, methods=["POST"]),
        Route("/v1/embeddings", embeddings, methods=["POST"]),
        Route("/v1/messages", messages, methods=["POST"]),
        Route("/v1/messages/count_tokens", CountTokens(services, workers).answer, methods=["POST"]),
        Route("/generate", generate, methods=["POST"]),
        *responses_routes(services, workers),
        Route("/v1/requests/{id}/timeline", TimelinePage(services).answer),
        Route("/v1/models", pages.models),
        Route("/v1/models/{model:path}", pages.model),
        Route("/health", pages.health),
        Route("/stats", pages.stats),
        Route("/ready", pages.ready),
        Route("/metrics", pages.metrics),
        *rolling_routes(services),
        Route("/debug/profile", TakeProfile(services), methods=["POST"]),
        Route("/version", pages.version),
        *docs_routes(services),
        *dashboard_routes(services),
        *chat_page_routes(),
        Route("/tokenize", pages.tokenize, methods=["POST"]),
        Route("/detokenize", pages.detokenize, methods=["POST"]),
    ]


def cors(services: Services) -> list[Middleware]:
    origins = services.settings.allow_origins
    if not origins:
        return []
    shown = ["x-request-id", "x-headrace-seed", "x-headrace-ignored", "x-headrace-parameters", "request-id"]
    shown += ["x-headrace-steps", "retry-after", "retry-after-ms"]
    shown += RATE_LIMIT_HEADERS
    return [
        Middleware(
            CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"], expose_headers=shown
        )
    ]


def guard(services: Services) -> list[Middleware]:
    """Inside CORS: a browser asks for permission without a key, and may read a refusal."""
    if services.keys is None and not services.settings.rate_limits:
        return []
    return [Middleware(Guard, services=services)]


class Edge:
    """Around every request: its id on the response, its place in the drain, its line in the log, and the last resort
    for a failure nobody foresaw."""

    def __init__(self, app: ASGIApp, services: Services) -> None:
        self._app = app
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        services = self._services
        drawn = request_id(scope["headers"], services.random_bits(128))
        times = times_of(scope)
        laps = laps_since_arrival(services.clock, times, scope)
        exchange = scope["headrace.exchange"] = Exchange(drawn, scope["method"], laps.began, laps=laps)
        inbound = Inbound(scope, receive)
        try:
            with services.drain.request():
                await self._guard(scope, inbound.receive, self._stamp(exchange, inbound, send, times), exchange)
        finally:
            exchange.outcome = exchange.outcome or ("ok" if exchange.status < 400 else "invalid")
            exchange.end(services.metrics)
            now = services.wall_clock()
            if services.timelines.close(exchange, now) and services.spans is not None:
                services.spans.add(timeline_of(exchange, now, ended=True), trace_headers(scope))
        return None

    def _stamp(self, exchange: Exchange, inbound: Inbound, send: Send, times: Times | None) -> Send:
        async def stamped(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                elapsed_ms = int((self._services.clock() - exchange.started) * 1000)
                message["headers"] = [
                    *await inbound.headers([*message.get("headers", ())]),
                    (b"x-request-id", exchange.request_id.encode()),
                    (b"request-id", exchange.request_id.encode()),  # Anthropic's clients look here
                    (b"openai-processing-ms", str(elapsed_ms).encode()),
                    (b"openai-version", OPENAI_VERSION),
                ]
                return await self._send_in_time(message, send, exchange)
            if message["type"] != "http.response.body" or message.get("more_body", False):
                return await send(message)
            if times is not None:
                times.ending()
            await self._send_in_time(message, send, exchange)
            if times is not None:
                exchange.laps.end(self._services.clock() - times.idle_s())
            return None

        return stamped

    async def _send_in_time(self, message: Message, send: Send, exchange: Exchange) -> None:
        """Raises SendTimeout: a whole answer has a bound for its length, as streams have one for each piece."""
        size = len(message.get("body", b""))
        try:
            async with asyncio.timeout(self._services.settings.send_timeout_s * (1 + size // CHUNK_BYTES) or None):
                await send(message)
        except TimeoutError:
            exchange.outcome = faults.outcome(faults.slow_reader(size))  # whatever was to be sent
            raise SendTimeout from None

    async def _guard(self, scope: Scope, receive: Receive, send: Send, exchange: Exchange) -> None:
        try:
            await self._app(scope, receive, send)
        except SendTimeout:
            pass  # the server closes the connection of an answer that has no end
        except Exception:
            _log.exception("request %s failed", exchange.request_id)
            error = faults.internal(exchange.request_id)
            exchange.fail(error)
            # Once a response has begun, only its missing end can tell the client.
            if exchange.status == 0:
                await error_response(error, scope)(scope, receive, send)


def laps_since_arrival(clock: Callable[[], float], times: Times | None, scope: Scope) -> Laps:
    if times is None:
        return Laps(clock)
    arrival = times.arrival(interleaved=scope["http_version"] not in ("1.0", "1.1"))
    before: dict[Cause, float] = {"event_loop": arrival.unread_s}
    if arrival.sending_s > MIN_SENDING_S:
        before["receive"] = arrival.sending_s
    return Laps(clock, clock() - arrival.ago_s, before)


def trace_headers(scope: Scope) -> dict[str, str]:
    """By which a trace is continued (W3C Trace Context)."""
    found = ((name.lower(), value) for name, value in scope["headers"])
    return {name.decode(): value.decode("latin-1") for name, value in found if name in TRACE_HEADERS}


async def api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    exchange_of(request.scope).fail(error)
    return error_response(error, request.scope)


async def http_error(request: Request, error: Exception) -> Response:
    """The router's own: an unknown path, a wrong method."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404 and (name := unbuilt_path(request.url.path)) is not None:
        return await api_error(request, unbuilt(None, f"{name} is not supported by this server."))
    codes = {404: "not_found", 405: "method_not_allowed"}
    messages = {
        404: f"There is nothing at {request.url.path[:200]}. What there is stands at /docs.",
        405: f"{request.url.path[:200]} does not answer {request.method}.",
    }
    message = messages.get(error.status_code, str(error.detail))
    headers = {name.lower(): value for name, value in (error.headers or {}).items()}
    if error.status_code == 405:
        headers["allow"] = ", ".join(sorted(allowed_methods(request)))
    converted = ApiError(error.status_code, message, code=codes.get(error.status_code), headers=headers)
    exchange_of(request.scope).fail(converted)
    return error_response(converted, request.scope)


def allowed_methods(request: Request) -> set[str]:
    """A path may have several routes, and the router tells of the first only. Those of the path itself are more than
    those of any id in its place."""
    routes: list[Route] = request.app.routes
    found = [each for each in routes if each.matches(request.scope)[0] != Match.NONE]
    exact = [each for each in found if each.path == request.url.path]
    return {method for each in exact or found for method in each.methods or ()}


async def client_gone(request: Request, error: Exception) -> Response:
    """Nobody reads it: the status is for the log."""
    exchange_of(request.scope).outcome = "client_closed"
    return Response(status_code=faults.CLIENT_CLOSED)
