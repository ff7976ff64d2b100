"""What answers /openapi.json and /docs: both are made when they are first asked for."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.openai import encode
from gateway.openapi.document import document
from gateway.openapi.page import page, security_policy
from gateway.services import Services


class Docs:
    def __init__(self, services: Services) -> None:
        self._services = services

    @cached_property
    def _document(self) -> dict[str, Any]:
        return document(self._services)

    @cached_property
    def _json(self) -> bytes:
        body: bytes = encode(self._document)
        return body

    @cached_property
    def _page(self) -> bytes:
        return page(self._document).encode()

    async def json(self, request: Request) -> Response:
        return Response(self._json, media_type="application/json")

    async def html(self, request: Request) -> Response:
        headers = {"content-security-policy": security_policy(), "x-content-type-options": "nosniff"}
        return Response(self._page, media_type="text/html", headers=headers)


def docs_routes(services: Services) -> list[Route]:
    docs = Docs(services)
    return [Route("/openapi.json", docs.json), Route("/docs", docs.html)]
