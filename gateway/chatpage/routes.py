"""What answers at /: the chat page and its parts."""

from __future__ import annotations

from starlette.routing import Route

from gateway.chatpage.files import CHAT_PAGE
from gateway.http.page_files import PageFiles

ENDPOINT = "chat_page"


def chat_page_routes() -> list[Route]:
    files = PageFiles(CHAT_PAGE, ENDPOINT)
    return [Route(CHAT_PAGE.page_route, files.page), Route(CHAT_PAGE.file_route, files.part)]
