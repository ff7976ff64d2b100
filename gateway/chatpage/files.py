"""The files of the chat page."""

from __future__ import annotations

from pathlib import Path

from gateway.http.page_files import CSS, JAVASCRIPT, PageFolder

FOLDER = Path(__file__).parent / "page"
PAGE = "chat.html"
PARTS = {
    "chat.css": CSS,
    "theme.js": JAVASCRIPT,
    "chat.js": JAVASCRIPT,
    "answer.js": JAVASCRIPT,
    "api.js": JAVASCRIPT,
    "commands.js": JAVASCRIPT,
    "dom.js": JAVASCRIPT,
    "inline.js": JAVASCRIPT,
    "markdown.js": JAVASCRIPT,
    "message.js": JAVASCRIPT,
    "page.js": JAVASCRIPT,
    "render.js": JAVASCRIPT,
    "settings.js": JAVASCRIPT,
    "sidebar.js": JAVASCRIPT,
    "store.js": JAVASCRIPT,
    "timing.js": JAVASCRIPT,
    "tree.js": JAVASCRIPT,
}
CHAT_PAGE = PageFolder(FOLDER, PAGE, PARTS, "/", "/chatpage/{file}")
