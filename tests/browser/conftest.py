"""Pages of a real server in headless Chromium: Debian's, driven by playwright. A page that a test opens is watched: an
error in its console, or a request to another host, fails the test."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.fixtures.server import RunningServer, serving

PATIENCE_MS = 60_000.0
WIDTH, HEIGHT = 1100, 800
PHONE = 360
FLAGS = ("--no-sandbox", "--disable-background-networking", "--disable-gpu")


def chromium_path() -> str:
    path = shutil.which("chromium")
    assert path is not None, "there is no Chromium; on Debian and Ubuntu: apt install chromium"
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Gone before other modules' tests: while it is there, this thread has an event loop that runs."""
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium_path(), args=list(FLAGS))
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def server(gguf_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """With few rows and blocks, so that something waits and the map is filled."""
    flags = ("--max-seqs", "4", "--kv-cache-memory", "256MiB", "--no-prefix-caching")
    with serving(tmp_path_factory.mktemp("browser"), *flags) as running:
        yield running


class Watched:
    """What a page did that it should not."""

    def __init__(self, page: Page, host: str) -> None:
        self.errors: list[str] = []
        self.elsewhere: list[str] = []
        self._host = host
        page.on("console", lambda message: message.type == "error" and self.errors.append(message.text))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self._look_at(request.url))

    def _look_at(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme != "data" and parts.netloc != self._host:
            self.elsewhere.append(url)


OpenPage = Callable[..., Page]


@contextmanager
def pages_of(browser: Browser, url: str) -> Iterator[OpenPage]:
    """open(path, width=, dark=, faults=): faults are parts of messages in the console that the test expects."""
    opened: list[tuple[Page, Watched, tuple[str, ...]]] = []

    def open_page(path: str, width: int = WIDTH, dark: bool = False, faults: tuple[str, ...] = ()) -> Page:
        viewport = {"width": width, "height": HEIGHT}
        page = browser.new_page(viewport=viewport, color_scheme="dark" if dark else "light")
        page.set_default_timeout(PATIENCE_MS)
        opened.append((page, Watched(page, urlsplit(url).netloc), faults))
        page.goto(url + path)
        return page

    try:
        yield open_page
        for _, watched, faults in opened:
            unexpected = [error for error in watched.errors if not any(fault in error for fault in faults)]
            assert unexpected == [] and watched.elsewhere == []
    finally:
        for page, _, _ in opened:
            page.close()


@pytest.fixture
def open_page(browser: Browser, server: RunningServer) -> Iterator[OpenPage]:
    with pages_of(browser, server.url) as opening:
        yield opening
