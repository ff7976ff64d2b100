"""The files of the live page."""

from __future__ import annotations

from pathlib import Path

from gateway.http.page_files import CSS, JAVASCRIPT, PageFolder

FOLDER = Path(__file__).parent / "page"
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
LIVE_PAGE = PageFolder(FOLDER, PAGE, PARTS, "/dashboard", "/dashboard/{file}")
