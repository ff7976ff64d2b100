"""headrace nanochat-web with a real model, and a client written as the page of nanochat's own server was."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fixtures.chat_web import Page, as_the_page_asks, said
from tests.fixtures.server import MODEL, PATIENCE_S, RunningServer, serving

QUICK = {"temperature": 0, "max_tokens": 20}
LONG = "Count from one to two hundred, in words."


@pytest.fixture(scope="module")
def chat_web(gguf_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("chat_web")
    flags = ("--model", MODEL, "--host", "127.0.0.1", "-t", "0", "-m", "9", "--device-type", "cpu", "-n", "1")
    with serving(folder, *flags, command="nanochat-web") as running:
        yield running


@contextmanager
def fetching(server: RunningServer, body: dict[str, Any]) -> Iterator[httpx.Response]:
    with httpx.stream("POST", f"{server.url}/chat/completions", json=body, timeout=PATIENCE_S) as answer:
        assert answer.status_code == 200, answer.read()
        yield answer


def test_the_page_has_a_conversation(chat_web: RunningServer) -> None:
    told: list[str] = []
    for question in ("What is the capital of France?", "Say it with an emoji: \U0001f600"):
        told.append(question)
        with fetching(chat_web, {**as_the_page_asks(*told), **QUICK}) as answer:
            page = Page().read(answer.iter_raw())
        assert page.is_done and page.answer
        assert all(found == {"token": found["token"], "gpu": 0} for found in page.objects[:-1])
        told.append(page.answer)


def test_it_answers_as_the_other_api_does(chat_web: RunningServer) -> None:
    body = {"messages": said(LONG)}
    with fetching(chat_web, body) as answer:  # by the defaults of the command's flags
        page = Page().read(answer.iter_raw())
    other = chat_web.post("/v1/chat/completions", {**body, "temperature": 0, "max_tokens": 9}).json()
    assert page.answer == other["choices"][0]["message"]["content"]
    assert len(page.objects) == other["usage"]["completion_tokens"] + 1 == 10


def test_one_streams_from_beginning_to_end_while_another_does(chat_web: RunningServer) -> None:
    with fetching(chat_web, {"messages": said(LONG), "max_tokens": 1500}) as long:
        pieces = long.iter_raw()
        assert Page().read([next(pieces)]).answer
        with fetching(chat_web, {"messages": said("Hi"), "max_tokens": 4}) as short:
            assert Page().read(short.iter_raw()).is_done
        assert chat_web.metrics()["requests_running"] == 1  # the long one goes on
        assert chat_web.get("/stats").json()["workers"][0]["running"] == 1
        assert Page().read([next(pieces)]).answer
    chat_web.metrics_when_idle()  # and has ended with its client


@pytest.mark.parametrize(
    ("changes", "status"),
    [({"max_tokens": 4097}, 400), ({"top_k": 201}, 400), ({"messages": []}, 400), ({"messages": None}, 422)],
)
def test_its_limits_hold(chat_web: RunningServer, changes: dict[str, Any], status: int) -> None:
    answer = chat_web.post("/chat/completions", {"messages": said("Hi"), **changes})
    assert answer.status_code == status and answer.json()["detail"]


def test_its_limits_hold_on_the_other_paths_too(chat_web: RunningServer) -> None:
    assert chat_web.post("/v1/chat/completions", {"messages": said("Hi"), "max_tokens": 4097}).status_code == 400


def test_pages_from_elsewhere_may_ask(chat_web: RunningServer) -> None:
    asking = {"origin": "http://page.example", "access-control-request-method": "POST"}
    allowed = httpx.options(f"{chat_web.url}/chat/completions", headers=asking, timeout=PATIENCE_S)
    assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, "*")


def test_health_and_stats(chat_web: RunningServer) -> None:
    chat_web.metrics_when_idle()
    health = chat_web.get("/health").json()
    assert health == {"status": "ok", "ready": True, "num_gpus": 1, "available_workers": 1}
    stats = chat_web.get("/stats").json()
    assert stats["total_workers"] == stats["available_workers"] + stats["busy_workers"] == 1
    assert (stats["workers"][0]["gpu_id"], stats["workers"][0]["device"]) == (0, "cpu")
