"""headrace roseinfer with a checkpoint of rosellm, asked by curl as the articles ask theirs."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from tests.fixtures.gpt2 import END, ROSELLM, RosellmOracle, save_rosellm, tokenizer
from tests.fixtures.server import PATIENCE_S, RunningServer, eventually, run_to_end, starting

PROMPT = "Hello, who are you?"
# The two calls of the article "LLM Inference from scratch: 012. Server".
CURL = """curl -X POST "http://127.0.0.1:8080/generate"   -H "Content-Type: application/json"   -d '{
    "prompt": "Hello, who are you?",
    "max_new_tokens": 32,
    "temperature": 0.8,
    "top_p": 0.95,
    "do_sample": true,
    "stream": %s
  }'"""


@pytest.fixture(scope="module")
def texts() -> Tokenizer:
    return tokenizer()


@pytest.fixture(scope="module")
def oracle() -> RosellmOracle:
    return RosellmOracle({**ROSELLM, "max_position_embeddings": 8192}).eval()


@pytest.fixture(scope="module")
def files(oracle: RosellmOracle, texts: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rosellm")
    texts.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": END}))
    save_rosellm(oracle, folder / "gpt2_tiny.pt")
    return folder


@pytest.fixture(scope="module")
def server(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    flags = ["--checkpoint-path", str(files / "gpt2_tiny.pt"), "--tokenizer-name", str(files), "--device", "cpu"]
    flags += ["--no-amp", "--no-cuda-graph", "--threads", "1", "--kv-cache-memory", "256MiB"]
    flags += ["--no-migration"]  # to see a stream break
    with starting(tmp_path_factory.mktemp("server"), *flags, command="roseinfer") as running:
        running.wait_until_open()
        yield running


def shell(server: RunningServer, command: str) -> subprocess.CompletedProcess[str]:
    """As a person types it, but for the port, which the system chose."""
    line = command.replace("127.0.0.1:8080", "{}:{}".format(*server.address))
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=PATIENCE_S, check=True)


@torch.inference_mode()
def continued(oracle: RosellmOracle, texts: Tokenizer) -> tuple[str, int]:
    """The greedy answer and its tokens: 20 or more, until they do not end in half a character."""
    ids = texts.encode(PROMPT).ids
    start, text = len(ids), ""
    while len(ids) < start + 20 or text.endswith("\ufffd"):
        ids.append(int(oracle(torch.tensor(ids))[-1].argmax()))
        text = texts.decode(ids[start:])
    return text, len(ids) - start


def test_the_first_call_of_the_tutorial_answers_json(server: RunningServer) -> None:
    answer = json.loads(shell(server, CURL % "false").stdout)
    assert list(answer) == ["text"]
    assert answer["text"].startswith(PROMPT) and len(answer["text"]) > len(PROMPT)


def test_the_second_call_of_the_tutorial_answers_plain_text(server: RunningServer) -> None:
    seen = shell(server, (CURL % "true").replace("curl", "curl -N -s -D /dev/stderr", 1))
    assert "content-type: text/plain; charset=utf-8" in seen.stderr
    assert seen.stdout and not seen.stdout.startswith((PROMPT, "{", "data:"))


def test_without_sampling_the_text_is_that_of_the_model(
    server: RunningServer, oracle: RosellmOracle, texts: Tokenizer
) -> None:
    expected, count = continued(oracle, texts)
    body: dict[str, Any] = {"prompt": PROMPT, "max_new_tokens": count, "stop_on_eos": False}
    assert server.post("/generate", body).json() == {"text": PROMPT + expected}
    assert server.post("/generate", {**body, "stream": True}).text == expected
    openai = {"prompt": PROMPT, "max_tokens": count, "ignore_eos": True, "temperature": 0, "model": "gpt2_tiny"}
    assert server.post("/v1/completions", openai).json()["choices"][0]["text"] == expected


def test_flags_without_effect_are_told_and_the_card_knows_the_context(server: RunningServer) -> None:
    assert "--no-cuda-graph has no effect: the engine chooses its kernels" in server.log
    (card,) = server.get("/v1/models").json()["data"]
    assert (card["id"], card["max_model_len"]) == ("gpt2_tiny", 8192)


def test_it_has_metrics_and_a_timeline(server: RunningServer) -> None:
    answer = server.post("/generate", {"prompt": PROMPT, "max_new_tokens": 3, "stop_on_eos": False})
    timeline = server.get(f"/v1/requests/{answer.headers['x-request-id']}/timeline").json()
    assert timeline["endpoint"] == "generate"
    assert server.metrics()["requests_total{endpoint=generate,outcome=length}"] > 0


def test_errors_are_one_object_and_no_traceback(server: RunningServer) -> None:
    answer = server.post("/generate", {"prompt": "a " * 9000})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert "Traceback" not in server.log


def test_curl_sees_that_a_stream_broke(server: RunningServer) -> None:
    """The engine dies: what was sent is no whole answer, and curl says so."""
    body = {"prompt": PROMPT, "max_new_tokens": 8000, "stop_on_eos": False, "stream": True}
    line = ["curl", "-sSN", server.url + "/generate", "-H", "content-type: application/json", "-d", json.dumps(body)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert os.read(process.stdout.fileno(), 1 << 16)
        os.kill(server.engine_pid(), signal.SIGKILL)
        rest, complaint = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 18, complaint  # transfer closed with outstanding read data remaining
    assert b'"error"' not in rest
    eventually(lambda: server.get("/ready").status_code == 200, "the engine is back")


def test_a_checkpoint_that_is_none_is_one_line(files: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.pt"
    bad.write_bytes(b"nothing")
    ended = run_to_end("--model", str(bad), "--tokenizer", str(files), "--device", "cpu")
    assert ended.returncode == 1
    assert "bad.pt cannot be read as a checkpoint of torch.save" in ended.stderr and "Traceback" not in ended.stderr
