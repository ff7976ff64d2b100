"""A nanochat checkpoint behind the real server, found where nanochat keeps it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fixtures.nanochat import CALCULATION_PROMPT, save_calculating, stored_ids
from tests.fixtures.server import PATIENCE_S, RunningServer, starting

MODEL = "nanochat-d4"
CALCULATED = "It:<|python_start|>6*7<|python_end|><|output_start|>42<|output_end|>."
FLAGS = ("--model", "nanochat:", "--source", "rl", "--device", "cpu", "--dtype", "float32", "--threads", "1")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    base = tmp_path_factory.mktemp("nanochat")
    save_calculating(base)
    (base / "chatsft_checkpoints").rename(base / "chatrl_checkpoints")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOCHAT_BASE_DIR", str(base))
        with starting(tmp_path_factory.mktemp("server"), *FLAGS, "--kv-cache-memory", "64MiB") as running:
            running.wait_until_open()
            yield running


def chat(server: RunningServer, **more: Any) -> dict[str, Any]:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "temperature": 0, **more}
    answer = httpx.post(f"{server.api}/chat/completions", json=body, timeout=PATIENCE_S).raise_for_status()
    read: dict[str, Any] = answer.json()
    return read


def test_a_chat_is_what_nanochat_answers(server: RunningServer) -> None:
    answer = chat(server, return_token_ids=True)
    assert answer["prompt_token_ids"] == CALCULATION_PROMPT
    (choice,) = answer["choices"]
    assert [choice["token_ids"]] == stored_ids("calculation")
    assert (choice["message"]["content"], choice["finish_reason"]) == (CALCULATED, "stop")
    assert answer["usage"]["completion_tokens"] == len(choice["token_ids"])


def test_what_it_calculated_can_be_sent_back(server: RunningServer) -> None:
    turns = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": CALCULATED},
        {"role": "user", "content": "again"},
    ]
    prompt = chat(server, messages=turns, return_token_ids=True)["prompt_token_ids"]
    said = stored_ids("calculation")[0]
    assert any(prompt[at : at + len(said)] == said for at in range(len(prompt)))


def test_it_streams(server: RunningServer) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "temperature": 0, "stream": True, "n": 2}
    texts, finishes = {0: "", 1: ""}, []
    with httpx.stream("POST", f"{server.api}/chat/completions", json=body, timeout=PATIENCE_S) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                for choice in json.loads(line.removeprefix("data: "))["choices"]:
                    texts[choice["index"]] += choice["delta"].get("content") or ""
                    finishes += [choice["finish_reason"]] * (choice["finish_reason"] is not None)
    assert (texts, finishes) == ({0: CALCULATED, 1: CALCULATED}, ["stop", "stop"])


def test_completions_begin_with_bos(server: RunningServer) -> None:
    body = {"model": MODEL, "prompt": "a", "max_tokens": 3, "temperature": 0, "return_token_ids": True}
    answer = httpx.post(f"{server.api}/completions", json=body, timeout=PATIENCE_S).raise_for_status().json()
    assert answer["choices"][0]["prompt_token_ids"] == [CALCULATION_PROMPT[0], ord("a")]


def test_nothing_is_left_in_the_engine(server: RunningServer) -> None:
    chat(server, max_tokens=10)
    server.metrics_when_idle()


def test_a_start_without_checkpoints_says_where_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    with starting(tmp_path / "server", "--model", "nanochat:") as running:
        assert running.exit_code() == 1
        assert running.log.strip().endswith(
            f"no nanochat checkpoints of source sft: {tmp_path}/chatsft_checkpoints is not there"
        )
