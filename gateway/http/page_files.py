"""The files of a page that the server comes with: nothing in them comes from elsewhere, or from a request."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from gateway.http.exchange import exchange_of

HTML, CSS, JAVASCRIPT = "text/html", "text/css", "text/javascript"
POLICY = "; ".join(
    (
        *("default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'"),
        *("img-src 'self' data:", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"),
    )
)


@dataclass(frozen=True, slots=True)
class PageFile:
    content: bytes
    media_type: str

    @property
    def etag(self) -> str:
        return f'"{hashlib.sha256(self.content).hexdigest()[:32]}"'

    def headers(self) -> dict[str, str]:
        return {
            "cache-control": "no-cache",  # kept, and asked for again: with another version the page is another
            "content-security-policy": POLICY,
            "etag": self.etag,
            "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff",
        }


@dataclass(frozen=True, slots=True)
class PageFolder:
    """A page and the parts that it names, which are all that is served of the folder."""

    folder: Path
    page: str
    parts: Mapping[str, str]  # media types
    page_route: str
    file_route: str  # with {file}

    @property
    def paths(self) -> frozenset[str]:
        """Of all files; the route itself is one of them, as it is described."""
        return frozenset(
            {self.page_route, self.file_route, *(self.file_route.format(file=name) for name in self.parts)}
        )

    def read(self, name: str) -> PageFile | None:
        """None: the page has no such part."""
        media_type = HTML if name == self.page else self.parts.get(name)
        return None if media_type is None else PageFile((self.folder / name).read_bytes(), media_type)


class PageFiles:
    """Answers for them, each read once."""

    def __init__(self, folder: PageFolder, endpoint: str) -> None:
        self._folder = folder
        self._endpoint = endpoint
        self._read: dict[str, PageFile] = {}

    async def page(self, request: Request) -> Response:
        return await self._answer(request, self._folder.page)

    async def part(self, request: Request) -> Response:
        name: str = request.path_params["file"]
        if name == self._folder.page:
            raise HTTPException(404)  # it has one address
        return await self._answer(request, name)

    async def _answer(self, request: Request, name: str) -> Response:
        exchange_of(request.scope).endpoint = self._endpoint
        file = self._read.get(name) or await asyncio.to_thread(self._folder.read, name)
        if file is None:
            raise HTTPException(404)
        self._read[name] = file
        if file.etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=file.headers())
        return Response(file.content, media_type=file.media_type, headers=file.headers())
