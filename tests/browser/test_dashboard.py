"""The live page as somebody sees it: rows come and go, blocks fill and empty, a timeline opens."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, Route, expect

from tests.browser.conftest import PATIENCE_MS, PHONE, OpenPage, pages_of
from tests.fixtures.server import MODEL, PATIENCE_S, RunningServer, serving

NUM_REQUESTS = 7
WORDS = ["river", "stone", "light", "water", "engine", "morning", "paper", "garden", "window", "silver"]
TIMELINE = {
    "endpoint": "completions",
    "outcome": None,
    "total_ms": 812.4,
    "causes": [
        {"cause": "parse", "ms": 0.3},
        {"cause": "queue", "ms": 212.1},
        {"cause": "prefill", "ms": 180.0},
        {"cause": "decode", "ms": 420.0},
    ],
    "events": [{"at_ms": 0.0, "name": "received"}, {"at_ms": 392.4, "name": "first token"}],
}

WHAT_IS_HELD = re.compile(r"^[1-9]\d* of \d+ blocks held")
NOTHING_IS_HELD = re.compile(r"^0 of \d+ blocks held")
PAINTED = """(name) => {
  const canvas = document.querySelector("canvas.blocks");
  const probe = getComputedStyle(document.querySelector(`.legend .${name}`), "::before").backgroundColor;
  const [red, green, blue] = probe.match(/\\d+/g).map(Number);
  const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  let found = 0;
  for (let at = 0; at < pixels.length; at += 4) {
    found += pixels[at] === red && pixels[at + 1] === green && pixels[at + 2] === blue && pixels[at + 3] === 255;
  }
  return found;
}"""


def ask(server: RunningServer, name: str, number: int, stop: threading.Event) -> None:
    """Read until the test has seen enough, then left."""
    prompt = " ".join(WORDS[(number * 7 + place * 3) % len(WORDS)] for place in range(60))
    body = {"model": MODEL, "prompt": prompt, "max_tokens": 1500, "ignore_eos": True, "stream": True}
    headers = {"x-request-id": f"{name}-{number}"}
    url = f"{server.url}/v1/completions"
    with httpx.stream("POST", url, json=body, headers=headers, timeout=PATIENCE_S) as answer:
        for _ in answer.iter_lines():
            if stop.is_set():
                return


@contextmanager
def load(server: RunningServer, name: str, num_requests: int = NUM_REQUESTS) -> Iterator[None]:
    stop = threading.Event()
    threads = [threading.Thread(target=ask, args=(server, name, number, stop)) for number in range(num_requests)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(PATIENCE_S)


def tell_timelines(page: Page) -> None:
    def answer(route: Route) -> None:
        request_id = route.request.url.split("/")[-2]
        route.fulfill(content_type="application/json", body=json.dumps({"id": request_id, **TIMELINE}))

    page.route("**/v1/requests/*/timeline", answer)


def painted(page: Page, name: str) -> int:
    found: int = page.evaluate(PAINTED, name)
    return found


def scrolls_sideways(page: Page) -> bool:
    wider: bool = page.evaluate("document.documentElement.scrollWidth > innerWidth")
    return wider


def test_rows_come_and_go_and_blocks_fill_and_empty(server: RunningServer, open_page: OpenPage) -> None:
    page = open_page("/dashboard")
    expect(page.get_by_role("status")).to_have_text("live")
    expect(page.locator("#rows")).to_contain_text("Nothing is running.")
    assert painted(page, "held") == 0 and painted(page, "free") > 0
    with load(server, "rows"):
        expect(page.locator("#rows tbody button")).to_have_count(4)
        expect(page.locator("#queue tbody button")).to_have_count(NUM_REQUESTS - 4)
        expect(page.locator("#rows tbody tr.decode").first).to_contain_text("/ 1,500")
        expect(page.locator(".engine canvas")).to_have_attribute("aria-label", WHAT_IS_HELD)
        assert painted(page, "held") > 0
        expect(page.locator(".figure").first.locator("p span")).not_to_have_text("0.0")
    expect(page.locator("#rows")).to_contain_text("Nothing is running.")
    expect(page.locator(".engine canvas")).to_have_attribute("aria-label", NOTHING_IS_HELD)
    assert painted(page, "held") == 0
    expect(page.locator("#ended").get_by_role("button", name="Timeline of rows-")).to_have_count(NUM_REQUESTS)
    expect(page.locator("#ended tbody tr").first).to_contain_text("client_closed")


def test_a_click_opens_a_timeline_of_one_that_runs_and_of_one_that_has_ended(
    server: RunningServer, open_page: OpenPage
) -> None:
    page = open_page("/dashboard")
    tell_timelines(page)
    dialog = page.get_by_role("dialog")
    with load(server, "told"):
        page.get_by_role("button", name="Timeline of told-").first.click()
        expect(dialog.get_by_role("heading")).to_have_text(re.compile(r"told-\d"))
        expect(dialog.locator("#timeline-sum")).to_have_text("completions, is running, 812 ms")
        expect(dialog.locator("#timeline-causes tbody tr")).to_have_text(
            ["parse0.3 ms0 %", "queue212 ms26 %", "prefill180 ms22 %", "decode420 ms52 %"]
        )
        widths = dialog.locator("#timeline-bar span").evaluate_all("all => all.map(each => each.offsetWidth)")
        assert widths[3] > widths[1] > widths[2] > widths[0] > 0
        dialog.get_by_text("Events").click()
        expect(dialog.locator("#timeline-events")).to_contain_text("first token")
        page.keyboard.press("Escape")
        expect(dialog).to_be_hidden()
    ended = page.locator("#ended").get_by_role("button", name="Timeline of told-")
    expect(ended).to_have_count(NUM_REQUESTS)  # so that no row moves any more
    row = ended.first
    row.focus()
    page.keyboard.press("Enter")
    expect(dialog).to_be_visible()
    dialog.get_by_role("button", name="Close").click()
    expect(dialog).to_be_hidden()
    expect(row).to_be_focused()


def test_the_server_s_own_timelines_open(server: RunningServer, open_page: OpenPage) -> None:
    page = open_page("/dashboard")
    dialog, causes = page.get_by_role("dialog"), page.locator("#timeline-causes tbody tr")
    with load(server, "real", 1):
        expect(page.locator("#rows tbody tr.decode")).to_have_count(1)
        page.get_by_role("button", name="Timeline of real-0").first.click()
        expect(dialog.locator("#timeline-sum")).to_contain_text("completions, is running")
        expect(causes.filter(has_text="decode")).to_have_count(1)
        page.keyboard.press("Escape")
    page.locator("#ended").get_by_role("button", name="Timeline of real-0").click()
    expect(dialog.locator("#timeline-sum")).to_contain_text("completions, ended: client_closed")
    expect(causes.filter(has_text="tokenize")).to_have_count(1)


def test_a_timeline_that_is_not_known_is_said_not_to_be(server: RunningServer, open_page: OpenPage) -> None:
    page = open_page("/dashboard", faults=("404",))
    page.route("**/timeline", lambda route: route.fulfill(status=404, body="{}"))
    with load(server, "untold", 1):
        page.get_by_role("button", name="Timeline of untold-0").first.click()
        expect(page.locator("#timeline-sum")).to_have_text("Its timeline is not known (any more).")


@pytest.mark.parametrize("dark", [False, True])
def test_nothing_scrolls_sideways_on_a_phone(server: RunningServer, open_page: OpenPage, dark: bool) -> None:
    page = open_page("/dashboard", width=PHONE, dark=dark)
    tell_timelines(page)
    assert not scrolls_sideways(page)
    with load(server, "phone"):
        expect(page.locator("#queue tbody button")).to_have_count(NUM_REQUESTS - 4)
        assert not scrolls_sideways(page)
        page.locator("#rows tbody button").first.click()
        expect(page.get_by_role("dialog")).to_be_visible()
        assert not scrolls_sideways(page)


def test_text_can_be_read_in_light_and_dark(open_page: OpenPage) -> None:
    for dark in (False, True):
        page = open_page("/dashboard", dark=dark)
        for name in ("h1", ".dim", "#state", "th"):
            assert contrast(page, name) >= 4.5, (dark, name)


def contrast(page: Page, selector: str) -> float:
    """Of an element's text to the page's ground, as WCAG counts it."""
    colours = page.locator(selector).first.evaluate(
        "e => [getComputedStyle(e).color, getComputedStyle(document.body).backgroundColor]"
    )
    lights = sorted(luminance([int(part) for part in re.findall(r"\d+", colour)[:3]]) for colour in colours)
    return (lights[1] + 0.05) / (lights[0] + 0.05)


def luminance(rgb: list[int]) -> float:
    parts = [each / 255 for each in rgb]
    red, green, blue = (each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_a_name_that_looks_like_markup_is_text(server: RunningServer, open_page: OpenPage) -> None:
    page = open_page("/dashboard")
    expect(page.get_by_role("status")).to_have_text("live")
    text = page.evaluate(
        """async () => {
          const { element } = await import("./dashboard/text.js");
          return element("p", {}, "<img src=x onerror=alert(1)>").innerHTML;
        }"""
    )
    assert text == "&lt;img src=x onerror=alert(1)&gt;"


def test_while_nobody_sees_the_page_nobody_is_served(server: RunningServer, open_page: OpenPage) -> None:
    page = open_page("/dashboard")
    expect(page.get_by_role("status")).to_have_text("live")
    with page.expect_event("requestfailed", lambda request: request.url.endswith("/events"), timeout=PATIENCE_MS):
        set_hidden(page, True)
    with page.expect_request("**/dashboard/events"):
        set_hidden(page, False)


def set_hidden(page: Page, hidden: bool) -> None:
    page.evaluate(
        """(hidden) => {
          Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
          document.dispatchEvent(new Event("visibilitychange"));
        }""",
        hidden,
    )


def test_with_keys_it_asks_for_one_and_says_when_the_server_is_gone(browser: Browser, tmp_path: Path) -> None:
    with serving(tmp_path, "--api-key", "sk-page") as server, pages_of(browser, server.url) as open_page:
        page = open_page("/dashboard", faults=("401", "ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED_ENCODING"))
        for key, state in (("sk-wrong", "a key is needed"), ("sk-page", "live")):
            page.get_by_label("This server asks for an API key").fill(key)
            page.get_by_role("button", name="Look").click()
            expect(page.get_by_role("status")).to_have_text(state)
        expect(page.locator("#key")).to_be_hidden()
        assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
        page.reload()
        expect(page.get_by_role("status")).to_have_text("live")
        server.end()
        expect(page.get_by_role("status")).to_have_text(re.compile("trying again in"))
