"""GET /v1/requests/{id}/timeline"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from gateway.errors import ApiError
from gateway.http.exchange import exchange_of
from gateway.openai import encode
from gateway.services import Services


class TimelinePage:
    def __init__(self, services: Services) -> None:
        self._services = services

    async def answer(self, request: Request) -> Response:
        exchange = exchange_of(request.scope)
        exchange.endpoint = "timeline"
        request_id = request.path_params["id"]
        found = self._services.timelines.find(request_id, exchange.key, self._services.wall_clock())
        others = self._services.others
        if found is None and others is not None and (told := await others.timeline(request_id, exchange.key)):
            return Response(told, media_type="application/json")
        if found is None:
            message = f"Nothing is known of a request '{request_id[:100]}'. Its id stands in the header x-request-id."
            raise ApiError(404, message, param="id", code="request_not_found")
        return Response(encode(found), media_type="application/json")
