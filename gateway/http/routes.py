"""The endpoints: what answers each path."""

from __future__ import annotations

import asyncio
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import partial

from msgspec import UNSET, UnsetType
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.answers.generation import Generation
from gateway.chat_web.workers import health_of, stats_of
from gateway.http import faults
from gateway.http.body import read_body
from gateway.http.exchange import Exchange, exchange_of
from gateway.http.race import ClientGone, Interrupt, MustStop, Presence
from gateway.http.sse import EventResponse, SendTimeout
from gateway.http.stream import BrokenOff, EventStream, outcome, whole_answer
from gateway.openai import Detokenized, Health, ModelCard, ModelList, PageDefaults, Rendered, Tokenized, Version, encode
from gateway.requests import prepare
from gateway.requests.convert import check_model
from gateway.requests.parse import ignored_header
from gateway.requests.prepare import Prepare, Prepared, Workers
from gateway.services import Services
from gateway.timeline.laps import timed_by


def json_response(body: bytes, headers: dict[str, str] | None = None) -> Response:
    return Response(body, media_type="application/json", headers=headers)


@dataclass(slots=True)
class Call:
    """One request under way. Its generation is here as soon as there is one, so that whoever ends the call finds it."""

    exchange: Exchange
    explain: bool  # the effective parameters are wanted
    generation: Generation | None = field(default=None)
    streams: bool = False  # its answer has begun, and has no status to change any more

    def stop(self, cause: str, services: Services) -> None:
        if self.generation is not None:
            self.generation.stop(cause, faults.draining(services))

    def close(self) -> None:
        if self.generation is not None:
            self.generation.close()


class Endpoint(ABC):
    """One that generates, as an ASGI application: it ends when the last byte is sent."""

    def __init__(self, services: Services, workers: Workers, name: str) -> None:
        self._services = services
        self._workers = workers
        self._name = name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        services = self._services
        call = Call(exchange_of(scope), Headers(scope=scope).get("x-headrace-explain", "0") not in ("", "0", "false"))
        call.exchange.endpoint = self._name
        services.timelines.open(call.exchange)
        laps = call.exchange.laps
        laps.enter("turn")
        await services.turnstile.enter()
        check_open(services)
        laps.enter("receive")
        body = await read_body(scope, receive, services.settings)
        laps.enter("prepare")
        try:
            with Presence(receive), timed_by(laps):
                response = await self._unless_forced(call, body)
                if isinstance(response, EventResponse):
                    return await self._send_events(call, response, scope, receive, send)
            await response(scope, receive, send)
        except ClientGone:
            if not call.streams:  # or else it has been answered, as far as it could be
                raise
        except MustStop:
            call.stop("draining", services)
            raise faults.draining(services) from None
        finally:
            call.close()

    async def _unless_forced(self, call: Call, body: bytes) -> Response | EventResponse:
        drain = self._services.drain
        if drain.forced:
            raise MustStop
        with Interrupt() as interrupt, drain.when_forced(lambda: interrupt.now(MustStop())):
            return await self._respond(call, body)

    @abstractmethod
    async def _respond(self, call: Call, body: bytes) -> Response | EventResponse:
        """Prepares, and answers."""

    async def _answer(self, call: Call, prepared: Prepared) -> Response | EventResponse:
        services, exchange = self._services, call.exchange
        prepare.check_strict(prepared.ignored, services.settings)
        exchange.stream = prepared.stream
        unread = services.settings.slow_reader_bytes if prepared.stream else None
        call.generation = generation = Generation(services, prepared.job, exchange, unread)
        await generation.start()
        headers = answer_headers(prepared, call.explain)
        if prepared.stream:
            return await self._event_response(call, generation, prepared, headers)
        answer = await whole_answer(generation, prepared.wire, exchange.laps)
        exchange.outcome = outcome(generation)
        return json_response(answer, headers)

    async def _event_response(
        self, call: Call, generation: Generation, prepared: Prepared, headers: dict[str, str]
    ) -> EventResponse:
        settings, framing = self._services.settings, prepared.framing
        ping_s = settings.ping_s if framing.has_comments else 0.0
        await first_output(generation, ping_s)
        stream = EventStream(generation, prepared.wire, call.exchange, framing)
        limits = {"ping_s": ping_s, "send_timeout_s": settings.send_timeout_s}
        headers = {**headers, "content-type": framing.media_type}
        return EventResponse(stream.events(), headers, **limits, offer=stream.send_by)

    async def _send_events(
        self, call: Call, response: EventResponse, scope: Scope, receive: Receive, send: Send
    ) -> None:
        services, call.streams = self._services, True
        services.metrics.stream_opened()
        try:
            with services.turnstile.stream(), services.drain.when_forced(lambda: call.stop("draining", services)):
                await response(scope, receive, send)
        except SendTimeout:
            slow = faults.slow_reader(services.settings.slow_reader_bytes)
            call.exchange.fail(slow)
            if call.generation is not None:
                call.generation.stop("slow_reader", slow)
        except BrokenOff:
            pass  # the server closes the connection of an answer that has no end
        except OSError:
            pass  # some servers raise it from send() when the client has left
        finally:
            services.metrics.stream_closed()
            # Without an outcome the stream was cancelled, which is how the server tells of a client that left.
            call.exchange.outcome = call.exchange.outcome or "client_closed"


class Generate(Endpoint):
    def __init__(self, services: Services, workers: Workers, name: str, preparation: Prepare) -> None:
        super().__init__(services, workers, name)
        self._preparation = preparation

    async def _respond(self, call: Call, body: bytes) -> Response | EventResponse:
        prepared = await self._workers.run(prepare.cost(body), partial(self._preparation, body, self._services))
        return await self._answer(call, prepared)


async def first_output(generation: Generation, patience_s: float) -> None:
    """Until there is something to send, a failure can still be told by its status. Heart-beats need the headers sent,
    so the wait is no longer than the first of them may be."""
    try:
        async with asyncio.timeout(patience_s or None):
            await generation.mailbox.filled()
    except TimeoutError:
        pass


def answer_headers(prepared: Prepared, explained: bool) -> dict[str, str]:
    headers = {} if prepared.job.params[0].embed else {"x-headrace-seed": str(prepared.job.seed)}
    if explained:
        headers["x-headrace-parameters"] = json.dumps(prepared.explain())
    return {**headers, **ignored_headers(prepared.ignored)}


def ignored_headers(ignored: list[str]) -> dict[str, str]:
    return {"x-headrace-ignored": ignored_header(ignored)} if ignored else {}


def check_open(services: Services) -> None:
    """Before the body is read. Raises 503 with the reason."""
    if services.drain.draining:
        services.metrics.rejected("draining")
        raise faults.draining(services)
    if services.engine.ready is None:
        services.metrics.rejected("engine_unavailable")
        raise faults.engine_unavailable(services, "The engine is not ready.")


class Pages:
    """Everything that does not generate."""

    def __init__(self, services: Services, workers: Workers) -> None:
        self._services = services
        self._workers = workers

    def _card(self) -> ModelCard:
        model, ready = self._services.model, self._services.engine.ready
        length = model.context_length if ready is None else ready.max_model_len
        return ModelCard(model.name, model.created, max_model_len=length, page_defaults=self._page_defaults())

    def _page_defaults(self) -> PageDefaults | UnsetType:
        settings = self._services.settings
        web = settings.web_defaults
        return PageDefaults(web.temperature, web.top_k, web.max_tokens) if settings.web_page else UNSET

    async def models(self, request: Request) -> Response:
        exchange_of(request.scope).endpoint = "models"
        return json_response(encode(ModelList([self._card()])))

    async def model(self, request: Request) -> Response:
        exchange_of(request.scope).endpoint = "models"
        check_model(request.path_params["model"], self._services.model)
        return json_response(encode(self._card()))

    async def health(self, request: Request) -> Response:
        """The gateway is alive. Whether it takes work is what /ready says."""
        exchange_of(request.scope).endpoint = "health"
        return json_response(encode(health_of(self._services)))

    async def stats(self, request: Request) -> Response:
        exchange_of(request.scope).endpoint = "health"
        return json_response(encode(stats_of(self._services)))

    async def ready(self, request: Request) -> Response:
        exchange_of(request.scope).endpoint = "health"
        services = self._services
        if services.drain.draining:
            raise faults.draining(services)
        prepare.limits(services)
        return json_response(encode(Health("ready")))

    async def metrics(self, request: Request) -> Response:
        exchange_of(request.scope).endpoint = "metrics"
        accept = request.headers.get("accept", "")
        if self._services.others is not None:
            await self._services.others.ask_for_series()
        page, content_type = await asyncio.to_thread(self._services.metrics.render, accept)
        return Response(page, headers={"content-type": content_type})

    async def version(self, request: Request) -> Response:
        return json_response(encode(Version(self._services.version)))

    async def render_chat(self, request: Request) -> Response:
        return await self._render(request, prepare.prepare_chat)

    async def render_completion(self, request: Request) -> Response:
        return await self._render(request, prepare.prepare_completion)

    async def _render(self, request: Request, preparation: Prepare) -> Response:
        """The prompt of a request that is not run."""
        exchange_of(request.scope).endpoint = "render"
        services = self._services
        body = await read_body(request.scope, request.receive, services.settings)
        prepared = await self._workers.run(prepare.cost(body), partial(preparation, body, services))
        return self._told(prepare.rendered(prepared, services), prepared.ignored)

    async def tokenize(self, request: Request) -> Response:
        exchange_of(request.scope).endpoint = "tokenize"
        services = self._services
        body = await read_body(request.scope, request.receive, services.settings)
        return self._told(*await self._workers.run(len(body), partial(prepare.prepare_tokenize, body, services)))

    async def detokenize(self, request: Request) -> Response:
        exchange_of(request.scope).endpoint = "detokenize"
        services = self._services
        body = await read_body(request.scope, request.receive, services.settings)
        return self._told(*await self._workers.run(len(body), partial(prepare.prepare_detokenize, body, services)))

    def _told(self, answer: Rendered | Tokenized | Detokenized, ignored: list[str]) -> Response:
        prepare.check_strict(ignored, self._services.settings)
        return json_response(encode(answer), ignored_headers(ignored))
