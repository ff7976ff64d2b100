"""What answers the paths below /v1/responses."""

from __future__ import annotations

from functools import partial

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response as HttpResponse
from starlette.routing import Route

from gateway.errors import ApiError
from gateway.http.body import read_body
from gateway.http.exchange import exchange_of
from gateway.http.routes import Call, Endpoint, answer_headers, check_open, json_response
from gateway.http.sse import EventResponse
from gateway.openai import encode
from gateway.requests import prepare
from gateway.requests.parse import ignored_header, invalid, unbuilt
from gateway.requests.prepare import Workers
from gateway.responses.background import Background
from gateway.responses.prepare import plan_response, prepare_response, response_cost
from gateway.responses.store import Record, Store
from gateway.responses.types import Deleted, InputTokens, Item, ItemList
from gateway.services import Services

_MAX_LISTED = 100


class CreateResponse(Endpoint):
    """POST /v1/responses"""

    def __init__(self, services: Services, workers: Workers, store: Store, background: Background) -> None:
        super().__init__(services, workers, "responses")
        self._store = store
        self._background = background

    async def _respond(self, call: Call, body: bytes) -> HttpResponse | EventResponse:
        services, exchange = self._services, call.exchange
        work = partial(prepare_response, body, services, self._store, exchange.key)
        response = await self._workers.run(response_cost(body), work)
        if not response.background:
            return await self._answer(call, response.prepared)
        prepare.check_strict(response.prepared.ignored, services.settings)
        started = await self._background.start(response, exchange)
        return json_response(encode(started), answer_headers(response.prepared, call.explain))


class Responses:
    """What was kept, and what does not generate."""

    def __init__(self, services: Services, workers: Workers, store: Store, background: Background) -> None:
        self._services = services
        self._workers = workers
        self._store = store
        self._background = background

    async def retrieve(self, request: Request) -> HttpResponse:
        record = self._record(request)
        if request.query_params.get("stream", "false").lower() == "true":
            raise unbuilt("stream", "A stored response cannot be streamed by this server.")
        return json_response(record.body)

    async def delete(self, request: Request) -> HttpResponse:
        record = self._record(request)
        self._background.discard(record.id)
        self._store.delete(record.id)
        return json_response(encode(Deleted(record.id)))

    async def cancel(self, request: Request) -> HttpResponse:
        record = self._record(request)
        if not record.response.background:
            raise invalid(None, "Only responses that run in the background can be cancelled.", "not_in_background")
        self._background.cancel(record.id)
        return json_response(self._record(request).body)

    async def input_items(self, request: Request) -> HttpResponse:
        record = self._record(request)
        return json_response(encode(listed(record.input_items, request.query_params)))

    async def input_tokens(self, request: Request) -> HttpResponse:
        services, exchange = self._services, exchange_of(request.scope)
        exchange.endpoint = "count_tokens"
        check_open(services)
        body = await read_body(request.scope, request.receive, services.settings)
        work = partial(plan_response, body, services, self._store, exchange.key)
        planned = await self._workers.run(response_cost(body), work)
        prepare.check_strict(planned.ignored, services.settings)
        headers = {"x-headrace-ignored": ignored_header(planned.ignored)} if planned.ignored else {}
        return json_response(encode(InputTokens(len(planned.job.prompts[0]))), headers)

    async def compact(self, request: Request) -> HttpResponse:
        exchange_of(request.scope).endpoint = "responses"
        raise unbuilt(None, "Compaction is not supported by this server.")

    def _record(self, request: Request) -> Record:
        exchange = exchange_of(request.scope)
        exchange.endpoint = "responses"
        response_id = request.path_params["id"]
        record = self._store.get(response_id, exchange.key)
        if record is None:
            message = f"The response '{response_id[:100]}' is not stored here."
            raise ApiError(404, message, param="response_id", code="response_not_found")
        return record


def listed(items: list[Item], query: QueryParams) -> ItemList:
    """A page: the newest first unless asked otherwise, from behind the item that `after` names."""
    order, limit, after = query.get("order", "desc"), query.get("limit", "20"), query.get("after")
    if order not in ("asc", "desc"):
        raise invalid("order", "order must be asc or desc.", "invalid_value")
    if not (limit.isascii() and limit.isdigit() and len(limit) < 9 and 1 <= int(limit) <= _MAX_LISTED):
        raise invalid("limit", f"limit must be between 1 and {_MAX_LISTED}.", "value_out_of_range")
    ordered = items if order == "asc" else items[::-1]
    start = 0
    if after is not None:
        places = [place for place, item in enumerate(ordered) if item.id == after]
        if not places:
            raise invalid("after", f"after: there is no item '{after[:100]}'.", "invalid_value")
        start = places[0] + 1
    page = ordered[start : start + int(limit)]
    first, last = (page[0].id, page[-1].id) if page else (None, None)
    return ItemList(data=page, first_id=first, last_id=last, has_more=start + len(page) < len(ordered))


def responses_routes(services: Services, workers: Workers) -> list[Route]:
    store = Store(services.settings.responses_store, services.settings.responses_store_bytes)
    background = Background(services)
    create = CreateResponse(services, workers, store, background)
    kept = Responses(services, workers, store, background)
    return [
        Route("/v1/responses", create, methods=["POST"]),
        Route("/v1/responses/input_tokens", kept.input_tokens, methods=["POST"]),
        Route("/v1/responses/compact", kept.compact, methods=["POST"]),
        Route("/v1/responses/{id}", kept.retrieve),
        Route("/v1/responses/{id}", kept.delete, methods=["DELETE"]),
        Route("/v1/responses/{id}/cancel", kept.cancel, methods=["POST"]),
        Route("/v1/responses/{id}/input_items", kept.input_items),
    ]
