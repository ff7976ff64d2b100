"""From the start to the end of the server's processes: signals, kills, restarts, and starts that must fail."""

import json
import os
import shutil
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import httpx
import openai
import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from tests.fixtures.server import MODEL, PATIENCE_S, RunningServer, eventually, processes, run_to_end, serving

DRAIN_S = 5
PROMPT = "The sun rises in the"


def endless(client: openai.OpenAI, max_tokens: int = 2000) -> openai.Stream[Any]:
    return client.completions.create(
        model=MODEL, prompt="Hi", max_tokens=max_tokens, temperature=0, stream=True, extra_body={"ignore_eos": True}
    )


@contextmanager
def private(folder: Path, *flags: str) -> Iterator[tuple[RunningServer, openai.OpenAI]]:
    with (
        serving(folder, *flags) as server,
        openai.OpenAI(base_url=server.api, api_key="any", max_retries=0) as client,
    ):
        yield server, client


def test_sigterm_ends_streams_in_time_and_refuses_new_work(gguf_path: Path, tmp_path: Path) -> None:
    """Of two streams one ends by itself, the other is told; a connection that does nothing holds nothing up."""
    with private(tmp_path, "--drain-timeout", str(DRAIN_S)) as (server, client):  # noqa: SIM117
        with httpx.Client(base_url=server.url, timeout=PATIENCE_S) as idle:
            assert idle.get("/ready").status_code == 200
            long, short = endless(client), endless(client, max_tokens=20)
            texts = [next(short).choices[0].text for _ in range(10)]
            next(long)
            server.send(signal.SIGTERM)
            refused = eventually(lambda: (answer := idle.get("/ready")).status_code == 503 and answer, "it drains")
            assert refused.json()["error"]["code"] == "draining" and int(refused.headers["retry-after"]) >= 1
            answer = idle.post("/v1/completions", json={"model": MODEL, "prompt": PROMPT})
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")
            rest = list(short)
            assert len("".join(texts + [chunk.choices[0].text for chunk in rest])) > 0
            assert rest[-1].choices[0].finish_reason == "length"
            with pytest.raises(openai.APIError) as raised:
                list(long)
            assert raised.value.code == "draining"
            assert server.exit_code() == 0
    assert "Traceback" not in server.log


def test_sigint_waits_for_streams_that_end_by_themselves(gguf_path: Path, tmp_path: Path) -> None:
    with private(tmp_path) as (server, client), socket.create_connection(server.address) as idle:
        engine = server.engine_pid()
        stream = endless(client, max_tokens=12)
        next(stream)
        server.send(signal.SIGINT)
        assert list(stream)[-1].choices[0].finish_reason == "length"
        assert server.exit_code() == 0
        assert idle.recv(1) == b""
        assert engine not in processes()


def test_without_migration_a_killed_engine_is_told_and_started_again(gguf_path: Path, tmp_path: Path) -> None:
    with private(tmp_path, "--no-migration") as (server, client):
        before = server.greedy(PROMPT)
        stream = endless(client)
        next(stream)
        os.kill(server.engine_pid(), signal.SIGKILL)
        with pytest.raises(openai.APIError) as raised:
            list(stream)
        assert raised.value.code == "engine_unavailable"
        gone = server.get("/ready")
        assert (gone.status_code, gone.json()["error"]["code"]) == (503, "engine_unavailable")
        assert server.get("/health").status_code == 200
        with pytest.raises(openai.InternalServerError) as refused:
            client.completions.create(model=MODEL, prompt=PROMPT)
        assert refused.value.status_code == 503 and refused.value.response.headers["retry-after"]
        eventually(lambda: server.get("/ready").status_code == 200, "the engine is back")
        assert server.greedy(PROMPT) == before
        seen = server.metrics_when_idle()
        assert (seen["engine_restarts_total"], seen["engine_up"]) == (1, 1)


def test_a_killed_gateway_takes_its_engine_along(gguf_path: Path, tmp_path: Path) -> None:
    with private(tmp_path) as (server, client):
        engine = server.engine_pid()
        next(endless(client))
        server.process.kill()
        eventually(lambda: engine not in processes(), "the engine has ended")


# starts that must fail


def refused_start(*flags: str) -> str:
    """The one line that says why."""
    ended = run_to_end(*flags)
    assert ended.returncode == 1
    assert ended.stdout == ""  # the summary, which is printed as the port opens
    said = [line for line in ended.stderr.splitlines() if line.startswith("headrace: ")]
    assert len(said) == 1 and said[0] == ended.stderr.splitlines()[-1], ended.stderr
    assert "Traceback" not in ended.stderr, ended.stderr
    return said[0]


def test_a_busy_port() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"127.0.0.1:{port}" in refused_start("--port", str(port))


def test_a_port_that_another_headrace_has(server: RunningServer) -> None:
    host, port = server.address
    assert f"{host}:{port}" in refused_start("--port", str(port))
    assert server.get("/ready").status_code == 200


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    assert str(tmp_path / "none.gguf") in refused_start("--model", str(tmp_path / "none.gguf"))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5])
def test_a_file_that_was_cut_off(gguf_path: Path, tmp_path: Path, share: float) -> None:
    path = tmp_path / "cut.gguf"
    shutil.copyfile(gguf_path, path)
    os.truncate(path, int(path.stat().st_size * share))
    assert "cut.gguf" in refused_start("--model", str(path))


def test_an_unknown_architecture(tmp_path: Path) -> None:
    config = {"architectures": ["Rwkv9ForCausalLM"], "model_type": "rwkv9", "max_position_embeddings": 64}
    (tmp_path / "config.json").write_text(json.dumps({**config, "vocab_size": 256}))
    tokenizer = Tokenizer(BPE({character: token for token, character in enumerate(ByteLevel.alphabet())}, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    said = refused_start("--model", str(tmp_path))
    assert "Rwkv9ForCausalLM is not supported" in said


def test_a_tokenizer_of_another_kind(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "spm.gguf", "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<s>", "a"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    said = refused_start("--model", str(tmp_path / "spm.gguf"))
    assert "spm.gguf" in said and "llama" in said and "token" in said
