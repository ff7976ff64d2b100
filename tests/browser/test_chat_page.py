"""The chat page as somebody uses it: in Chromium, against a whole server whose engine says what the test wants."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from gateway.chatpage.files import FOLDER, PAGE, PARTS
from gateway.services import HttpSettings, WebDefaults
from scheduler.types import Rejected
from tests.browser.chat_server import ChatServer, chat_server
from tests.browser.conftest import PHONE, WIDTH, OpenPage, pages_of
from tests.browser.markdown_cases import BLOCKS, EVERYTHING, HOSTILE, LONG
from tests.fixtures.server import ROOT, RunningServer

MOST_BYTES = 100_000
AXE = ROOT / "tests" / "clients" / "node_modules" / "axe-core" / "axe.min.js"
COMMANDS = [
    ("/temperature", "Temperature: the server's default"),
    ("/temperature 0.6", "Temperature is 0.6 now."),
    ("/temperature 3", "Temperature must be 0 to 2."),
    ("/topk 50", "Top k is 50 now."),
    ("/topk many", "Top k must be a whole number, 0 or more."),
    ("/max_tokens 5", "Max tokens is 5 now."),
    ("/seed default", "Seed is the server's default now."),
    ("/system Be kind.", "The system prompt is set."),
    ("/model", "Model: toy. There is: toy"),
    ("/model other", "There is no model other. There is: toy"),
    ("/theme dark", "The theme is dark now."),
    ("/retry", "There is nothing to answer yet."),
    ("/help", "/temperature [0 to 2] – how boldly words are drawn"),
    ("/nothing", "There is no command /nothing; /help lists them."),
]
SPEED = re.compile(r"^\d+ tokens? · [\d,.]+ tok/s · first after [\d.,]+ m?s · [\d.,]+ m?s in all$")


@pytest.fixture(scope="module")
def chat() -> Iterator[ChatServer]:
    with chat_server() as server:
        yield server


@pytest.fixture
def open_chat(browser: Browser, chat: ChatServer) -> Iterator[OpenPage]:
    chat.says("Hello")
    chat.refuses(None)
    with pages_of(browser, chat.url) as opening:
        yield opening


def box(page: Page) -> Locator:
    return page.get_by_role("textbox", name="Message", exact=True)


def send(page: Page, text: str) -> None:
    box(page).fill(text)
    box(page).press("Enter")


def answers(page: Page) -> Locator:
    return page.locator(".assistant .body")


def button(page: Page, name: str) -> Locator:
    return page.get_by_role("button", name=name, exact=True)


def titles(page: Page) -> Locator:
    return page.locator("#chats .chat")


def said(page: Page) -> Locator:
    return page.get_by_role("log")


def is_over(page: Page) -> None:
    expect(button(page, "Send")).to_be_visible()
    expect(page.locator("[aria-busy=true]")).to_have_count(0)


# the size of it


def test_all_of_it_is_small() -> None:
    sizes = {path.name: path.stat().st_size for path in FOLDER.iterdir()}
    assert set(sizes) == {PAGE, *PARTS}
    assert sum(sizes.values()) < MOST_BYTES


# to send, to read, to stop


def test_an_answer_streams_and_is_told_how_fast_it_was(chat: ChatServer, open_chat: OpenPage) -> None:
    page = open_chat("/")
    expect(box(page)).to_be_focused()
    chat.says("One two three four", allowed=2)
    send(page, "Count!")
    expect(page.locator(".user .text")).to_have_text("Count!")
    expect(answers(page)).to_have_text("One two")
    expect(page.locator(".assistant")).to_have_attribute("aria-busy", "true")
    expect(page.locator(".timing")).to_have_count(0)
    chat.allow()
    expect(answers(page)).to_have_text("One two three four")
    is_over(page)
    expect(box(page)).to_be_focused()
    expect(page.locator(".timing .speed")).to_have_text(SPEED)
    expect(page.get_by_role("img", name="Where the time went")).to_be_visible()
    page.locator(".timing summary").click()
    expect(page.locator(".timing dl")).to_contain_text("toy")
    expect(page.locator(".timing tbody tr").first).to_have_text(re.compile(r"^[a-z_]+[\d.]+ ms\d+ %$"))
    expect(said(page)).to_contain_text("The answer is complete. It has 19 tokens.")
    assert chat.asked == [("user", "Count!")]


def test_the_bar_s_parts_are_as_wide_as_their_times(tab: Page) -> None:
    causes = [("parse", 0.5), ("queue", 200.0), ("prefill", 100.0), ("decode", 699.5), ("grammar", 0.0)]
    stats = {"prompt": 1500, "cached": 1024, "generated": 70, "total_ms": 1000.0, "ttft_ms": 310.0}
    told = tab.evaluate(
        """async (node) => {
          const { timing } = await import("./chatpage/timing.js");
          const made = timing(node);
          document.getElementById("thread").append(made);
          const widths = [...made.querySelectorAll(".bar span")].map((each) => each.getBoundingClientRect().width);
          made.open = true;
          const rows = [...made.querySelectorAll("tr")].map((row) => row.innerText.replace(/\\s+/g, " "));
          const facts = made.querySelector("dl").innerText.replace(/\\s+/g, " ");
          const line = made.querySelector(".speed").textContent;
          made.remove();
          return { widths, rows, facts, line };
        }""",
        {"model": "toy", "seed": "7", "stats": {**stats, "causes": [{"cause": c, "ms": ms} for c, ms in causes]}},
    )
    assert told["line"] == "70 tokens · 100 tok/s · first after 310 ms · 1.00 s in all"
    queue, prefill, decode = told["widths"]  # what takes half a percent and more
    assert queue / prefill == pytest.approx(2, rel=0.05) and decode / prefill == pytest.approx(6.995, rel=0.05)
    assert told["rows"] == ["parse 0.5 ms 0 %", "queue 200 ms 20 %", "prefill 100 ms 10 %", "decode 700 ms 70 %"]
    assert told["facts"] == "model toy prompt 1,500 tokens, 1,024 of them from the cache seed 7"


def test_shift_and_enter_begin_a_line_and_enter_sends_it(chat: ChatServer, open_chat: OpenPage) -> None:
    page = open_chat("/")
    box(page).press_sequentially("first")
    box(page).press("Shift+Enter")
    box(page).press_sequentially("second")
    height = box(page).bounding_box()
    box(page).press("Enter")
    expect(answers(page)).to_have_text("Hello")
    assert chat.asked == [("user", "first\nsecond")]
    after = box(page).bounding_box()
    assert height is not None and after is not None and height["height"] > after["height"]


@pytest.mark.parametrize("how", ["Escape", "button"])
def test_stop_ends_the_answer_and_the_engine_s_work(chat: ChatServer, open_chat: OpenPage, how: str) -> None:
    page = open_chat("/")
    chat.says("One two three four", allowed=2)
    send(page, "Count!")
    expect(answers(page)).to_have_text("One two")
    if how == "Escape":
        page.keyboard.press("Escape")
    else:
        button(page, "Stop").click()
    expect(page.locator(".note")).to_have_text("The answer was stopped.")
    is_over(page)
    expect(answers(page)).to_have_text("One two")
    assert chat.last.seq_ids[0] in chat.engine.aborted
    expect(page.locator(".timing .speed")).to_contain_text("7 tokens")  # the server was asked what became of it


def test_a_stopped_answer_can_be_gone_on_with(chat: ChatServer, open_chat: OpenPage) -> None:
    page = open_chat("/")
    chat.says("One two three", allowed=2)
    send(page, "Count!")
    expect(answers(page)).to_have_text("One two")
    page.keyboard.press("Escape")
    chat.says(" three four")
    button(page, "Go on with this answer").click()
    expect(answers(page)).to_have_text("One two three four")
    is_over(page)
    assert chat.asked == [("user", "Count!"), ("assistant", "One two")]
    expect(page.locator(".note")).to_have_count(0)


def test_an_answer_that_was_cut_by_its_length_says_so(chat: ChatServer, open_chat: OpenPage) -> None:
    page = open_chat("/")
    chat.says("So long", finish="length")
    send(page, "Tell!")
    expect(page.locator(".note")).to_have_text("The answer has reached its longest length.")
    expect(button(page, "Go on with this answer")).to_be_visible()


# other answers, other messages


def test_another_answer_stands_beside_the_first(chat: ChatServer, open_chat: OpenPage) -> None:
    page = open_chat("/")
    chat.says("Red")
    send(page, "A colour!")
    expect(answers(page)).to_have_text("Red")
    chat.says("Blue")
    button(page, "Another answer").click()
    expect(answers(page)).to_have_text("Blue")
    assert chat.asked == [("user", "A colour!")]
    expect(page.locator(".versions")).to_contain_text("2 of 2")
    button(page, "Version before").click()
    expect(answers(page)).to_have_text("Red")
    expect(button(page, "Next version")).to_be_focused()
    chat.says("Yes")
    send(page, "Sure?")
    expect(answers(page).last).to_have_text("Yes")
    assert chat.asked == [("user", "A colour!"), ("assistant", "Red"), ("user", "Sure?")]
    button(page, "Next version").click()
    expect(answers(page)).to_have_text("Blue")  # with what followed the other gone


def test_an_edited_message_is_gone_on_from_and_the_old_one_stays(chat: ChatServer, open_chat: OpenPage) -> None:
    page = open_chat("/")
    send(page, "first")
    expect(answers(page)).to_have_count(1)
    is_over(page)
    send(page, "second")
    expect(answers(page)).to_have_count(2)
    is_over(page)
    button(page, "Edit this message").first.click()
    edit = page.get_by_role("textbox", name="Edited message")
    expect(edit).to_have_value("first")
    edit.fill("never sent")
    edit.press("Escape")
    expect(page.locator(".user .text").first).to_have_text("first")
    button(page, "Edit this message").first.click()
    edit.fill("changed")
    chat.says("Changed as well")
    edit.press("Enter")
    expect(answers(page)).to_have_text(["Changed as well"])
    assert chat.asked == [("user", "changed")]
    page.locator(".user").get_by_role("button", name="Version before").click()
    expect(page.locator(".user .text")).to_have_text(["first", "second"])


def test_arrow_up_edits_the_last_message(chat: ChatServer, open_chat: OpenPage) -> None:
    page = open_chat("/")
    send(page, "first")
    is_over(page)
    box(page).press("ArrowUp")
    expect(page.get_by_role("textbox", name="Edited message")).to_be_focused()


# conversations


def test_conversations_are_switched_between_renamed_and_deleted(chat: ChatServer, open_chat: OpenPage) -> None:
    page = open_chat("/")
    chat.says("Of rivers")
    send(page, "Rivers?")
    expect(answers(page)).to_have_text("Of rivers")
    is_over(page)
    button(page, "New chat").click()
    expect(page.locator(".message")).to_have_count(0)
    chat.says("Of stones")
    send(page, "Stones?")
    expect(answers(page)).to_have_text("Of stones")
    assert chat.asked == [("user", "Stones?")]
    is_over(page)
    expect(titles(page)).to_have_text(["Stones?", "Rivers?"])
    titles(page).last.click()
    expect(answers(page)).to_have_text("Of rivers")
    expect(titles(page).last).to_have_attribute("aria-current", "page")

    titles(page).last.hover()
    button(page, "Rename Rivers?").click()
    page.get_by_role("textbox", name="New name").fill("About rivers")
    page.keyboard.press("Enter")
    expect(titles(page)).to_contain_text(["About rivers", "Stones?"])

    titles(page).first.hover()
    button(page, "Delete About rivers").click()
    expect(titles(page)).to_have_text(["Stones?"])
    expect(page.locator(".message")).to_have_count(0)
    button(page, "Undo").click()
    expect(answers(page)).to_have_text("Of rivers")
    expect(titles(page)).to_have_count(2)


def test_a_reload_keeps_the_conversation_and_its_settings(chat: ChatServer, open_chat: OpenPage) -> None:
    page = open_chat("/")
    chat.says("**Kept**")
    send(page, "/temperature 0.25")
    send(page, "Keep this")
    expect(page.locator(".timing")).to_have_count(1)
    page.reload()
    expect(answers(page).locator("strong")).to_have_text("Kept")
    expect(page.locator(".timing .speed")).to_have_text(SPEED)
    expect(titles(page)).to_have_text(["Keep this"])
    send(page, "And now?")
    expect(answers(page)).to_have_count(2)
    assert chat.asked == [("user", "Keep this"), ("assistant", "**Kept**"), ("user", "And now?")]
    assert chat.last.params.temperature == 0.25


def test_a_reload_amid_an_answer_keeps_what_had_come(chat: ChatServer, open_chat: OpenPage) -> None:
    page = open_chat("/")
    chat.says("One two three", allowed=2)
    send(page, "Count!")
    expect(answers(page)).to_have_text("One two")
    page.reload()
    expect(answers(page)).to_have_text("One two")
    expect(page.locator(".note")).to_have_text("The answer was cut off when this page was left.")


def test_an_answer_goes_on_while_another_conversation_is_shown(chat: ChatServer, open_chat: OpenPage) -> None:
    page = open_chat("/")
    chat.says("One two three", allowed=1)
    send(page, "Count!")
    expect(answers(page)).to_have_text("One")
    button(page, "New chat").click()
    expect(page.locator(".message")).to_have_count(0)
    expect(page.locator("#chats .running")).to_have_count(1)
    chat.allow()
    expect(page.locator("#chats .running")).to_have_count(0)
    titles(page).first.click()
    expect(answers(page)).to_have_text("One two three")


def test_a_second_tab_sees_what_the_first_has_kept(chat: ChatServer, open_chat: OpenPage) -> None:
    page = open_chat("/")
    with page.expect_popup() as opened:
        page.evaluate("void window.open('/')")
    other = opened.value
    expect(box(other)).to_be_focused()
    send(page, "Seen elsewhere")
    is_over(page)
    expect(titles(other)).to_have_text(["Seen elsewhere"])
    titles(other).click()
    expect(answers(other)).to_have_text("Hello")


def test_the_oldest_conversations_make_room(open_chat: OpenPage) -> None:
    page = open_chat("/")
    kept = page.evaluate(
        """async () => {
          const { Store, local } = await import("./chatpage/store.js");
          const { add, newConversation } = await import("./chatpage/tree.js");
          const store = new Store(local);
          for (let number = 0; number < 230; number += 1) {
            const each = newConversation({});
            Object.assign(each, { title: `${number}`, updated: number });
            add(each, 0, "user", "x".repeat(20_000));
            store.save(each);
          }
          const listed = store.list();
          const names = Object.keys(localStorage).filter((name) => name.startsWith("headrace-chat-"));
          const long = newConversation({});
          add(long, 0, "user", "x".repeat(3_000_000));
          return { titles: listed.map(({ title }) => title), names: names.length, long: store.save(long) };
        }"""
    )
    assert kept["titles"][0] == "229" and 50 < len(kept["titles"]) < 100 and kept["names"] == len(kept["titles"])
    assert kept["titles"] == [str(229 - place) for place in range(len(kept["titles"]))]
    assert kept["long"] is False


def test_what_is_kept_and_damaged_does_no_harm(open_chat: OpenPage) -> None:
    page = open_chat("/")
    page.evaluate(
        """() => {
          localStorage.setItem("headrace-chats", JSON.stringify([{ id: "a", title: "Damaged", updated: 1 }, null, 3]));
          localStorage.setItem("headrace-chat-a", "{");
        }"""
    )
    page.reload()
    titles(page).click()
    expect(page.get_by_role("status")).to_contain_text("cannot be read any more")
    send(page, "Hello?")
    expect(answers(page)).to_have_text("Hello")


# settings and commands


def test_settings_are_asked_for_and_empty_ones_are_the_server_s(chat: ChatServer, open_chat: OpenPage) -> None:
    page = open_chat("/")
    send(page, "Plain")
    is_over(page)
    assert (chat.last.params.temperature, chat.last.params.top_k) == (1.0, 0)
    button(page, "Settings").click()
    dialog = page.get_by_role("dialog", name="Settings")
    given = {"Temperature": "0.5", "Top p": "0.9", "Top k": "7", "Max tokens": "9", "Seed": "42"}
    for label, value in given.items():
        dialog.get_by_label(label).fill(value)
    dialog.get_by_label("System prompt").fill("Be brief.")
    dialog.get_by_role("button", name="Done").click()
    expect(dialog).to_be_hidden()
    send(page, "Set")
    is_over(page)
    params = chat.last.params
    assert (params.temperature, params.top_p, params.top_k, params.max_tokens) == (0.5, 0.9, 7, 9)
    assert chat.asked[0] == ("system", "Be brief.")
    expect(page.locator(".timing dl").last).to_contain_text("seed42")


def test_of_nanochat_web_the_page_asks_with_its_defaults(browser: Browser) -> None:
    settings = HttpSettings(migration=False, web_page=True, web_defaults=WebDefaults(0.25, 7, 9))
    with chat_server(settings=settings) as chat, pages_of(browser, chat.url) as opening:
        page = opening("/")
        send(page, "Plain")
        is_over(page)
        params = chat.last.params
        assert (params.temperature, params.top_k, params.max_tokens) == (0.25, 7, 9)
        button(page, "Settings").click()
        field = page.get_by_label("Temperature")
        assert (field.input_value(), field.get_attribute("placeholder")) == ("", "0.25")
        field.fill("0.5")
        page.get_by_role("button", name="Done").click()
        send(page, "Set")
        is_over(page)
        assert (chat.last.params.temperature, chat.last.params.top_k) == (0.5, 7)


def test_settings_that_cannot_be_are_refused_in_words(open_chat: OpenPage) -> None:
    page = open_chat("/")
    button(page, "Settings").click()
    field = page.get_by_label("Temperature")
    field.fill("3")
    field.press("Tab")
    assert field.evaluate("e => e.validationMessage") == "Temperature must be 0 to 2."
    field.fill("")
    page.get_by_label("Top k").fill("1.5")
    page.get_by_label("Top k").press("Tab")
    assert page.get_by_label("Top k").evaluate("e => e.validationMessage").startswith("Top k must be a whole number")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(button(page, "Settings")).to_be_focused()


@pytest.fixture(scope="module")
def tab(browser: Browser, chat: ChatServer) -> Iterator[Page]:
    """One page for many small looks."""
    with pages_of(browser, chat.url) as opening:
        yield opening("/")


def test_commands_are_answered_by_the_page(chat: ChatServer, tab: Page) -> None:
    before = len(chat.engine.submitted)
    for number, (line, told) in enumerate(COMMANDS, 1):
        send(tab, line)
        expect(tab.locator(".console")).to_have_count(number)
        expect(tab.locator(".console").last).to_contain_text(told)
    assert len(chat.engine.submitted) == before


def test_commands_act(chat: ChatServer, open_chat: OpenPage) -> None:
    page = open_chat("/")
    for line in ("/temperature 0.5", "/topk 3", "/topp 0.75", "/maxtokens 4", "/seed 5", "/system Be kind."):
        send(page, line)
    expect(page.locator(".console")).to_have_count(6)
    send(page, "Now")
    is_over(page)
    params = chat.last.params
    assert (params.temperature, params.top_k, params.top_p, params.max_tokens) == (0.5, 3, 0.75, 4)
    assert chat.asked == [("system", "Be kind."), ("user", "Now")]
    chat.says("Again")
    send(page, "/retry")
    expect(answers(page)).to_have_text("Agai")  # four tokens
    is_over(page)
    send(page, "/clear")
    expect(page.locator(".message")).to_have_count(0)
    expect(titles(page)).to_have_count(1)
    send(page, " /not a command")
    is_over(page)
    assert chat.asked[-1] == ("user", "/not a command")
    page.keyboard.press("Control+Shift+N")
    expect(page.locator(".message")).to_have_count(0)


def test_commands_are_shown_while_they_are_typed(open_chat: OpenPage) -> None:
    page = open_chat("/")
    box(page).press_sequentially("/t")
    expect(page.locator("#hint div")).to_contain_text(["/topk", "/theme"])
    expect(page.locator("#hint")).not_to_contain_text("/seed")
    box(page).fill("text")
    expect(page.locator("#hint")).to_be_hidden()


# what goes wrong


def test_a_refusal_is_told_in_words_and_can_be_tried_again(chat: ChatServer, open_chat: OpenPage) -> None:
    page = open_chat("/", faults=("429",))
    chat.refuses(Rejected("queue_full", "The queue is full.", 1.0))
    send(page, "Hello?")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("The queue is full. There may be room again in 2 s.")
    chat.refuses(None)
    alert.get_by_role("button", name="Try again").click()
    expect(answers(page)).to_have_text("Hello")
    expect(page.get_by_role("alert")).to_have_count(0)
    expect(page.locator(".versions")).to_have_count(0)  # nothing was lost with the first


def test_a_message_without_an_answer_is_asked_with_the_next(chat: ChatServer, open_chat: OpenPage) -> None:
    page = open_chat("/", faults=("429",))
    chat.refuses(Rejected("queue_full", "The queue is full.", 1.0))
    send(page, "One")
    expect(page.get_by_role("alert")).to_be_visible()
    chat.refuses(None)
    send(page, "Two")
    expect(answers(page).last).to_have_text("Hello")
    assert chat.asked == [("user", "One\n\nTwo")]


def test_an_answer_that_breaks_off_keeps_what_had_come(chat: ChatServer, open_chat: OpenPage) -> None:
    page = open_chat("/")
    chat.says("One two three", allowed=2)
    send(page, "Count!")
    expect(answers(page)).to_have_text("One two")
    ready = chat.engine.ready
    chat.now(chat.engine.die)
    chat.now(lambda: setattr(chat.engine, "ready", ready))
    expect(page.get_by_role("alert")).to_contain_text("The engine died. It may be starting again.")
    expect(answers(page)).to_have_text("One two")
    chat.says("One two three")
    button(page, "Try again").click()
    expect(answers(page)).to_have_text("One two three")


def test_a_server_that_cannot_be_reached_is_said_to_be(open_chat: OpenPage) -> None:
    page = open_chat("/", faults=("ERR_INTERNET_DISCONNECTED", "ERR_FAILED"))
    page.route("**/v1/models", lambda route: route.abort())
    page.reload()
    expect(page.get_by_role("status")).to_contain_text("The server cannot be reached.")
    page.unroute("**/v1/models")
    button(page, "Try again").click()
    expect(page.locator("#model option")).to_have_count(1)
    page.context.set_offline(True)
    send(page, "Anybody?")
    expect(page.get_by_role("alert")).to_contain_text("The server cannot be reached.")
    page.context.set_offline(False)
    button(page, "Try again").click()
    expect(answers(page)).to_have_text("Hello")


def test_a_key_is_asked_for_and_what_waited_for_it_is_sent(browser: Browser) -> None:
    with chat_server(key="sk-page") as server, pages_of(browser, server.url) as opening:
        page = opening("/", faults=("401",))
        page.get_by_label("This server asks for an API key.").fill("sk-wrong")
        button(page, "Use it").click()
        expect(page.get_by_text("not one of this server's")).to_be_visible()
        send(page, "Waiting")
        expect(page.locator(".failure")).to_contain_text("The API key is not one of this server's.")
        page.get_by_label("This server asks for an API key.").fill("sk-page")
        button(page, "Use it").click()
        expect(answers(page)).to_have_text("Hello")
        assert page.evaluate("[localStorage.getItem('headrace-key'), document.cookie]") == [None, ""]
        assert page.evaluate("sessionStorage.getItem('headrace-key')") == "sk-page"
        page.reload()
        expect(page.locator("#key")).to_be_hidden()
        expect(page.locator("#model option")).to_have_text("toy")
        button(page, "Settings").click()
        button(page, "Forget the key").click()
        assert page.evaluate("sessionStorage.getItem('headrace-key')") is None
        page.reload()
        page.get_by_label("This server asks for an API key.").fill("sk-page")
        page.get_by_label("Keep it on this device").check()
        button(page, "Use it").click()
        expect(page.locator("#key")).to_be_hidden()
        assert page.evaluate("localStorage.getItem('headrace-key')") == "sk-page"


def test_a_model_without_a_template_continues_text_and_that_is_said(browser: Browser) -> None:
    with chat_server(has_template=False) as server, pages_of(browser, server.url) as opening:
        page = opening("/", faults=("400",))
        server.says(" there was a river.")
        send(page, "Once upon a time")
        expect(answers(page)).to_have_text("there was a river.")
        expect(page.get_by_text("toy has no chat template: it continues text")).to_be_visible()
        is_over(page)
        send(page, "And then")
        expect(answers(page)).to_have_count(2)
        is_over(page)
        text = bytes(token for token in server.last.prompt if token < 256).decode()
        assert text == "Once upon a time there was a river.\nAnd then"


# what a model may write


def test_reasoning_is_folded(chat: ChatServer, open_chat: OpenPage) -> None:
    page = open_chat("/")
    chat.says("<think>\nThe user <b>counts</b>.\n</think>\n\nThree")
    send(page, "Count!")
    expect(answers(page)).to_have_text("Three")
    expect(page.locator(".reasoning .text")).to_be_hidden()
    page.get_by_text("Reasoning").click()
    expect(page.locator(".reasoning .text")).to_have_text("The user <b>counts</b>.")
    is_over(page)
    send(page, "Next")
    is_over(page)
    assert ("assistant", "Three") in chat.asked


def test_markup_in_an_answer_stays_text(chat: ChatServer, open_chat: OpenPage) -> None:
    page = open_chat("/")
    page.evaluate("() => { window.harmed = 0; window.alert = () => { window.harmed += 1; }; }")
    chat.says("\n\n".join(HOSTILE))
    send(page, "<img src=x onerror=alert(1)>")
    is_over(page)
    expect(page.locator(".user .text")).to_have_text("<img src=x onerror=alert(1)>")
    expect(titles(page)).to_have_text(["<img src=x onerror=alert(1)>"])
    allowed = (
        "H2 H3 P A EM STRONG DEL CODE PRE DIV SPAN BUTTON svg path BR UL OL LI TABLE THEAD TBODY TR TH TD HR BLOCKQUOTE"
    )
    found = answers(page).evaluate("body => [...body.querySelectorAll('*')].map(each => each.tagName)")
    assert found and set(found) <= set(allowed.split())
    attributes = answers(page).evaluate(
        "body => [...body.querySelectorAll('*')].flatMap(each => each.getAttributeNames())"
    )
    assert not [name for name in attributes if name.startswith("on") or name in ("style", "src", "srcset", "id")]
    links = answers(page).locator("a").evaluate_all("all => all.map(each => each.href)")
    assert all(link.startswith(("https://", "http://", "mailto:")) for link in links)
    expect(answers(page)).to_contain_text("<script>alert(1)</script>")
    page.reload()
    expect(answers(page)).to_contain_text("<script>alert(1)</script>")
    assert page.evaluate("window.harmed") is None


RENDER = """async (text) => {
  const { Markdown } = await import("./chatpage/render.js");
  const root = document.createElement("div");
  new Markdown(root).show(text, true);
  for (const each of root.querySelectorAll("button")) each.remove();
  return root.innerHTML;
}"""
RENDER_IN_PIECES = """async (text) => {
  const { Markdown } = await import("./chatpage/render.js");
  const [whole, grown] = [document.createElement("div"), document.createElement("div")];
  new Markdown(whole).show(text, true);
  const markdown = new Markdown(grown);
  for (let end = 1; end <= text.length; end += 1) markdown.show(text.slice(0, end), false);
  markdown.show(text, true);
  return [whole.innerHTML, grown.innerHTML];
}"""


def test_markdown(tab: Page) -> None:
    for text, html in BLOCKS:
        shown = tab.evaluate(RENDER, text)
        for attribute in (' target="_blank"', ' rel="noopener noreferrer nofollow"', ' class=""', ' scope="col"'):
            shown = shown.replace(attribute, "")
        assert re.sub(r' title="[^"]*"', "", shown) == html


def test_markdown_that_comes_in_pieces_ends_as_the_whole(tab: Page) -> None:
    for text in (EVERYTHING, "\n\n".join(text for text, _ in BLOCKS), *HOSTILE):
        whole, grown = tab.evaluate(RENDER_IN_PIECES, text)
        assert whole == grown


def test_what_is_long_and_strange_is_drawn_all_the_same(tab: Page) -> None:
    for name, text in LONG.items():
        shown: Any = tab.evaluate(
            """async (text) => {
              const { Markdown } = await import("./chatpage/render.js");
              const root = document.createElement("div");
              new Markdown(root).show(text, true);
              let depth = 0;
              for (const each of root.querySelectorAll("*")) {
                let above = 0;
                for (let node = each; node !== root; node = node.parentNode) above += 1;
                depth = Math.max(depth, above);
              }
              return [root.textContent.length, depth];
            }""",
            text,
        )
        assert shown[0] > 0 and shown[1] < 80, name


def test_code_is_copied_as_it_stands(chat: ChatServer, open_chat: OpenPage) -> None:
    page = open_chat("/")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    chat.says("Look:\n\n```python\nif a < b:\n    print('<b>')\n```\n\nDone.")
    send(page, "Code!")
    is_over(page)
    expect(page.locator(".code-head span")).to_have_text("python")
    button(page, "Copy this code").click()
    expect(said(page)).to_contain_text("Copied.")
    assert page.evaluate("navigator.clipboard.readText()") == "if a < b:\n    print('<b>')"
    button(page, "Copy this answer").click()
    page.wait_for_function("async () => (await navigator.clipboard.readText()).startsWith('Look:')")


def test_whole_paragraphs_are_read_out_as_they_come(chat: ChatServer, open_chat: OpenPage) -> None:
    page = open_chat("/")
    chat.says("First part.\n\nSecond part.\n\nThird part.\n\nFourth part.", allowed=7)
    send(page, "Parts!")
    expect(said(page)).to_contain_text("First part.")
    expect(said(page)).not_to_contain_text("Third")
    expect(said(page)).to_have_attribute("aria-live", "polite")
    chat.allow()
    expect(said(page)).to_contain_text("Fourth part.")


# for everybody


def faults_of(page: Page) -> list[str]:
    page.evaluate(AXE.read_text())
    found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    grave = [each for each in found["violations"] if each["impact"] in ("serious", "critical")]
    assert found["passes"]
    return [json.dumps([each["id"], [node["html"] for node in each["nodes"]]]) for each in grave]


@pytest.mark.parametrize(("width", "dark"), [(WIDTH, False), (PHONE, True)])
def test_axe_finds_nothing_serious(chat: ChatServer, open_chat: OpenPage, width: int, dark: bool) -> None:
    page = open_chat("/", width=width, dark=dark, faults=("429",))
    assert faults_of(page) == []
    chat.says("<think>Well.</think>" + EVERYTHING)
    send(page, "Everything!")
    is_over(page)
    page.get_by_text("Reasoning").click()
    page.locator(".timing summary").click()
    send(page, "/help")
    chat.refuses(Rejected("queue_full", "The queue is full.", 1.0))
    send(page, "More")
    expect(page.locator(".failure")).to_be_visible()
    button(page, "Edit this message").first.click()
    assert faults_of(page) == []
    button(page, "Cancel").click()
    if width == PHONE:
        button(page, "Conversations").click()
        assert faults_of(page) == []
        page.keyboard.press("Escape")
    button(page, "Settings").click()
    assert faults_of(page) == []


def test_the_keyboard_reaches_everything_in_order(chat: ChatServer, open_chat: OpenPage) -> None:
    page = open_chat("/")
    send(page, "Hello?")
    is_over(page)
    page.locator(".skip").focus()
    seen = []
    for _ in range(22):
        seen.append(
            page.evaluate(
                "(e => e.getAttribute('aria-label') || e.textContent || e.id)(document.activeElement)"
            ).strip()
        )
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        if seen[-1] == "Message":
            break
        assert outline != "none", seen
        page.keyboard.press("Tab")
    wanted = ["To the message box", "New chat", "Hello?", "Rename Hello?", "Delete Hello?", "Settings", "Messages"]
    wanted += ["Copy this message", "Edit this message", "Copy this answer", "Another answer", "Message"]
    assert [name for name in seen if name in wanted] == wanted


@pytest.mark.parametrize("dark", [False, True])
def test_nothing_scrolls_sideways_on_a_phone(chat: ChatServer, open_chat: OpenPage, dark: bool) -> None:
    page = open_chat("/", width=PHONE, dark=dark)
    chat.says(EVERYTHING + "\n\n" + "w" * 300)
    send(page, "Everything, and a word " + "w" * 100)
    is_over(page)
    wider = "document.documentElement.scrollWidth > innerWidth || thread.scrollWidth > thread.clientWidth"
    assert not page.evaluate(wider)
    button(page, "Conversations").click()
    expect(titles(page)).to_be_visible()
    expect(button(page, "New chat")).to_be_focused()
    page.keyboard.press("Escape")
    expect(titles(page)).to_be_hidden()
    expect(button(page, "Conversations")).to_be_focused()
    button(page, "Settings").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    assert not page.evaluate(wider)


def test_the_theme_is_chosen_and_stays(open_chat: OpenPage) -> None:
    page = open_chat("/")
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    button(page, "Settings").click()
    page.get_by_label("Theme").select_option("dark")
    assert page.evaluate(ground) != light
    page.reload()
    assert page.evaluate(ground) != light


def test_a_reader_who_has_scrolled_up_is_left_there(chat: ChatServer, open_chat: OpenPage) -> None:
    page = open_chat("/")
    chat.says("\n\n".join(f"Line {number}" for number in range(80)), allowed=120)
    send(page, "Lines!")
    expect(answers(page)).to_contain_text("Line 58")
    at_end = "thread.scrollHeight - thread.scrollTop - thread.clientHeight < 2"
    page.wait_for_function(at_end)
    page.evaluate("thread.scrollTop = 100")
    expect(button(page, "To the end")).to_be_visible()
    chat.allow()
    expect(answers(page)).to_contain_text("Line 79")
    is_over(page)
    assert page.evaluate("thread.scrollTop") == 100
    button(page, "To the end").click()
    page.wait_for_function(at_end)
    expect(button(page, "To the end")).to_be_hidden()


def test_it_talks_to_a_real_model(server: RunningServer, open_page: OpenPage) -> None:
    page = open_page("/")
    send(page, "/temperature 0")
    send(page, "What is the capital of France?")
    expect(answers(page)).to_contain_text("Paris")
    expect(page.locator(".timing .speed")).to_have_text(SPEED)
    page.locator(".timing summary").click()
    expect(page.locator(".timing tbody tr").filter(has_text="decode")).to_have_count(1)
