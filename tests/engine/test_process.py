"""`python -m engine` as a process: it says when it is ready or why not, works, and ends when it should."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from scheduler.protocol import (
    Accepted,
    EngineConfig,
    Fatal,
    FromEngine,
    Output,
    Outputs,
    Progress,
    Pulse,
    Ready,
    Rejection,
    Submit,
    Vocabulary,
)
from scheduler.types import SamplingParams
from tests.engine.test_loaders import CONFIG
from tests.engine.test_server import Gateway

DEADLINE_S = 120


class Engine:
    def __init__(self, folder: Path, **config: object) -> None:
        self.path = folder / "s"
        told = EngineConfig(model=str(folder), format="dummy", socket_path=str(self.path), **config)  # type: ignore[arg-type]
        self._gateways: list[Gateway] = []
        command = [sys.executable, "-m", "engine"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        assert self.process.stdin is not None
        self.process.stdin.write(msgspec.json.encode(told) + b"\n")
        self.process.stdin.flush()

    def connect(self) -> Gateway:
        """Retries until the socket is there; bounded by the process itself, which ends if it cannot listen."""
        while self.process.poll() is None:
            try:
                gateway = Gateway(self.path)
            except (FileNotFoundError, ConnectionRefusedError):
                continue
            gateway.sock.settimeout(DEADLINE_S)
            self._gateways.append(gateway)
            return gateway
        raise AssertionError(self.process.communicate()[1].decode())

    def after_start(self, gateway: Gateway) -> FromEngine:
        while isinstance(message := gateway.receive(), Progress):
            pass
        return message

    def close(self) -> None:
        for gateway in self._gateways:
            gateway.sock.close()
        self.process.kill()
        self.process.communicate(timeout=DEADLINE_S)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


@pytest.fixture
def engine(folder: Path) -> Iterator[Engine]:
    engine = Engine(folder, threads=1, dtype="float32", max_seqs=4)
    yield engine
    engine.close()


def heard(gateway: Gateway) -> FromEngine:
    """Pulses left out."""
    while isinstance(message := gateway.receive(), Pulse):
        pass
    return message


def verdict(gateway: Gateway) -> FromEngine:
    while isinstance(message := heard(gateway), Outputs):
        assert message.outputs == []  # a sign of life
    return message


def answer(gateway: Gateway, submit: Submit) -> list[Output]:
    gateway.send(submit)
    assert verdict(gateway) == Accepted(submit.seq_ids)
    outputs: list[Output] = []
    while sum(output.finish is not None for output in outputs) < len(submit.seq_ids):
        message = heard(gateway)
        assert isinstance(message, Outputs)
        outputs += message.outputs
    return outputs


def test_it_answers_and_ends_with_its_parent(engine: Engine) -> None:
    gateway = engine.connect()
    ready = engine.after_start(gateway)
    assert isinstance(ready, Ready)
    assert (ready.vocab_size, ready.dtype, ready.max_seqs) == (100, "float32", 4)
    outputs = answer(gateway, Submit([1, 2], [5, 6, 7], SamplingParams(max_tokens=5, temperature=0), [1, 2]))
    tokens = {seq_id: [t for o in outputs if o.seq_id == seq_id for t in o.tokens] for seq_id in (1, 2)}
    assert len(tokens[1]) == 5
    assert tokens[1] == tokens[2]
    assert engine.process.stdin is not None
    engine.process.stdin.close()
    engine.process.stdin = None  # communicate() would flush it once more
    assert engine.process.wait(DEADLINE_S) == 0


def test_a_prompt_that_fills_the_context_is_scored_and_nothing_is_generated(engine: Engine) -> None:
    gateway = engine.connect()
    assert isinstance(engine.after_start(gateway), Ready)
    params = SamplingParams(max_tokens=0, prompt_logprobs=2, embed=True)
    leader, follower = answer(gateway, Submit([1, 2], [5, 6] * 64, params, [1, 2]))
    for output in (leader, follower):
        assert (output.tokens, output.logprobs, output.finish) == ([], None, "length")
    assert leader.first is not None
    assert leader.first.prompt is not None
    assert leader.first.prompt.logprobs is not None
    assert [len(told.top_ids) for told in leader.first.prompt.logprobs] == [2] * 127
    assert len(leader.first.prompt.embedding or b"") == 4 * CONFIG["hidden_size"]
    assert follower.first is not None
    assert (follower.first.prompt, follower.first.cached_tokens) == (None, 112)


def test_it_follows_a_grammar_once_it_knows_what_tokens_stand_for(engine: Engine) -> None:
    gateway = engine.connect()
    assert isinstance(engine.after_start(gateway), Ready)
    params = SamplingParams(max_tokens=20, stop_ids=(99,), grammar='start: "yes" | "maybe"')
    gateway.send(Submit([1], [5], params, [1]))
    refusal = verdict(gateway)
    assert isinstance(refusal, Rejection)
    assert refusal.code == "bad_grammar"
    gateway.send(Vocabulary([*(bytes([code]) for code in range(ord("a"), ord("z") + 1))], [], [25]))
    outputs = answer(gateway, Submit([2], [5], params, [1]))
    text = bytes(ord("a") + token for output in outputs for token in output.tokens)
    assert text in (b"yes", b"maybe")
    assert outputs[-1].finish == "stop"


def test_sigterm_ends_it_with_code_0_and_sigint_does_nothing(engine: Engine) -> None:
    gateway = engine.connect()
    assert isinstance(engine.after_start(gateway), Ready)
    engine.process.send_signal(signal.SIGINT)
    answer(gateway, Submit([1], [5], SamplingParams(max_tokens=2), [1]))
    engine.process.send_signal(signal.SIGTERM)
    assert engine.process.wait(DEADLINE_S) == 0


@pytest.mark.parametrize(
    ("change", "config", "kind", "words"),
    [
        ({"architectures": ["Foo"]}, {}, "model", "architecture Foo is not supported"),
        ({}, {"device": "cuda:9"}, "model", "device 'cuda:9' is not there"),
        ({}, {"max_model_len": 129}, "model", "the model's context of 128 tokens"),
        ({}, {"kv_cache_bytes": 1000}, "memory", "--kv-cache-memory"),
        ({}, {"kv_cache_bytes": 1 << 15, "max_model_len": 128}, "memory", "--max-model-len"),
    ],
)
def test_it_says_in_one_line_why_it_cannot_start(
    folder: Path, change: dict[str, object], config: dict[str, object], kind: str, words: str
) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG, **change}))
    engine = Engine(folder, threads=1, dtype="float32", **config)
    try:
        fatal = engine.after_start(engine.connect())
        assert isinstance(fatal, Fatal)
        assert (fatal.kind, "\n" in fatal.message) == (kind, False)
        assert words in fatal.message
        assert engine.process.wait(DEADLINE_S) == 1
    finally:
        engine.close()
