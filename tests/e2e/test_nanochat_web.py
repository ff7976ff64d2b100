"""A checkpoint of nanochat's behind headrace nanochat-web: its own model, asked by its own client."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.fixtures.chat_web import Page, said
from tests.fixtures.nanochat import save_calculating
from tests.fixtures.server import PATIENCE_S, RunningServer, starting

FLAGS = ("-i", "rl", "-g", "d4", "-s", "650", "-t", "0", "-d", "float32", "--device-type", "cpu", "--host", "127.0.0.1")
CALCULATED = "It:<|python_start|>6*7<|python_end|><|output_start|>42<|output_end|>."


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    base = tmp_path_factory.mktemp("nanochat")
    save_calculating(base)
    (base / "chatsft_checkpoints").rename(base / "chatrl_checkpoints")
    ours = ("--threads", "1", "--kv-cache-memory", "64MiB")
    folder = tmp_path_factory.mktemp("server")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOCHAT_BASE_DIR", str(base))
        with starting(folder, *FLAGS, *ours, command="nanochat-web") as running:
            running.wait_until_open()
            yield running


def test_the_checkpoint_that_the_flags_name_answers(server: RunningServer) -> None:
    """With its calculator, whose mark-up is text as it was there."""
    body = {"messages": said("hi")}
    with httpx.stream("POST", f"{server.url}/chat/completions", json=body, timeout=PATIENCE_S) as answer:
        page = Page().read(answer.iter_raw())
    assert (page.answer, page.is_done) == (CALCULATED, True)
    assert server.get("/v1/models").json()["data"][0]["id"] == "nanochat-d4"


def test_a_step_that_is_not_there_is_told_at_the_start(server: RunningServer, tmp_path: Path) -> None:
    with starting(tmp_path, "-i", "rl", "-s", "7", command="nanochat-web") as failing:
        assert failing.exit_code() == 1
        assert "has no checkpoint of step 7; there are 650" in failing.log
