"""The files of the live page: nothing in them comes from elsewhere, or from a request."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "page"
HTML, CSS, JAVASCRIPT = "text/html", "text/css", "text/javascript"
PAGE = "dashboard.html"
PARTS = {
    "dashboard.css": CSS,
    "dashboard.js": JAVASCRIPT,
    "blocks.js": JAVASCRIPT,
    "feed.js": JAVASCRIPT,
    "sparkline.js": JAVASCRIPT,
    "tables.js": JAVASCRIPT,
    "text.js": JAVASCRIPT,
    "timeline.js": JAVASCRIPT,
}
FILE_ROUTE = "/dashboard/{file}"
# The route itself is one of them, as it is described.
PAGE_PATHS = frozenset({"/dashboard", FILE_ROUTE, *(FILE_ROUTE.format(file=name) for name in PARTS)})
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


def read_file(name: str) -> PageFile | None:
    """None: the page has no such part."""
    media_type = HTML if name == PAGE else PARTS.get(name)
    return None if media_type is None else PageFile((FOLDER / name).read_bytes(), media_type)
