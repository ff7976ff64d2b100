"""The command as a process: what it prints, when it fails, how it ends. The engine behind it is the fake one."""

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gateway.cli import app
from gateway.config import CONFIG_FLAG, Option, options
from gateway.errors import ServerReplaced
from tests.fixtures.engines import ROOT

PATIENCE_S = 120.0
HELP = CliRunner().invoke(app, ["serve", "--help"], terminal_width=200).output


@pytest.fixture
def environ(tmp_path: Path, gguf_path: Path) -> dict[str, str]:
    """Without HEADRACE_* of the developer's own, and with `-m engine` meaning the fake one."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    program = tmp_path / "path" / "engine" / "__main__.py"
    program.parent.mkdir(parents=True)
    (program.parent / "__init__.py").touch()  # so that it comes before the real one
    write_engine(program, "serve")
    path = os.pathsep.join((str(tmp_path / "path"), str(ROOT)))
    return {**kept, "PYTHONPATH": path, "HEADRACE_CACHE": str(gguf_path.parent.parent), "HEADRACE_PORT": "0"}


def write_engine(program: Path, *how: str) -> None:
    program.write_text(f"from tests.fixtures.fake_engine import main\n\nmain(*{how!r})\n")


def program_of(environ: dict[str, str]) -> Path:
    return Path(environ["PYTHONPATH"].split(os.pathsep)[0], "engine", "__main__.py")


def run(environ: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gateway", *arguments]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=PATIENCE_S)


@contextmanager
def serving(environ: dict[str, str], *arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway", "serve", *arguments],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def summary(process: subprocess.Popen[str]) -> list[str]:
    """All lines of it; the last one is the curl line."""
    assert process.stdout
    lines = []
    for line in process.stdout:
        lines.append(line.rstrip("\n"))
        if line.startswith("curl"):
            return lines
    raise AssertionError(process.stderr.read() if process.stderr else "")


def url_of(lines: list[str]) -> str:
    return next(line.split()[1] for line in lines if line.startswith("URL"))


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, errors = process.communicate(timeout=PATIENCE_S)
    return process.returncode, errors


@pytest.mark.parametrize("option", [CONFIG_FLAG, *options()], ids=lambda option: option.name)
def test_every_flag_has_its_variable_in_the_help(option: Option) -> None:
    words = re.sub(r"\s+", " ", HELP)
    assert f"{option.flag} " in words
    assert f"[env var: {option.variable}" in words


def test_the_version_is_told(environ: dict[str, str]) -> None:
    assert re.fullmatch(r"headrace \d+\.\d+\.\d+\n", run(environ, "--version").stdout)


def test_a_busy_port_fails_before_the_model_is_looked_for(environ: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = run(environ, "serve", "--port", str(port), "--model", "/not/there")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == f"headrace: cannot listen on 127.0.0.1:{port}: Address already in use\n"


def test_a_model_that_is_none_fails_in_one_line(environ: dict[str, str]) -> None:
    ended = run(environ, "serve", "--model", "/not/there")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert re.fullmatch(r"headrace: no model '/not/there': .*\n", ended.stderr)


def test_a_wrong_variable_fails_in_one_line_that_names_it(environ: dict[str, str]) -> None:
    ended = run({**environ, "HEADRACE_MAX_SEQS": "many"}, "serve")
    assert ended.returncode == 2
    assert ended.stderr == "headrace: --max-seqs (or HEADRACE_MAX_SEQS): expected int, not 'many'\n"


def test_a_wrong_key_of_the_file_fails_in_one_line(environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "h.toml").write_text("prot = 1")
    ended = run({**environ, "HEADRACE_CONFIG": str(tmp_path / "h.toml")}, "serve")
    assert ended.returncode == 2
    assert ended.stderr == f"headrace: unknown key 'prot' in {tmp_path}/h.toml; did you mean 'port'?\n"


def test_a_flag_that_is_none_is_a_usage_error(environ: dict[str, str]) -> None:
    ended = run(environ, "serve", "--prot", "1")
    assert ended.returncode == 2
    assert "No such option: --prot" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_broken_file_of_keys_fails_in_one_line_without_the_key(environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "keys.txt").write_text("sk-one\nsk-two speed=9\n")
    ended = run(environ, "serve", "--api-key-file", str(tmp_path / "keys.txt"))
    assert (ended.returncode, ended.stdout) == (2, "")
    problem = "word 1 after the key is none of name=, rpm=, tpm=, concurrency=, admin"
    assert ended.stderr == f"headrace: keys: {tmp_path}/keys.txt, line 2: {problem}\n"


def test_a_key_is_hashed() -> None:
    hashed = CliRunner().invoke(app, ["hash-key"], input="sk-one\n")
    assert hashed.output == f"sha256:{hashlib.sha256(b'sk-one').hexdigest()}\n"
    assert CliRunner().invoke(app, ["hash-key"], input="\n").exit_code == 2


def test_what_the_engine_says_of_the_model_is_the_line(environ: dict[str, str]) -> None:
    write_engine(program_of(environ), "fatal", "model", "no tensor named lm_head")
    ended = run(environ, "serve")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.splitlines()[-1] == "headrace: no tensor named lm_head"
    assert "Traceback" not in ended.stderr


def test_an_engine_that_crashes_at_start_is_quoted(environ: dict[str, str]) -> None:
    write_engine(program_of(environ), "crash", "ImportError: no torch")
    ended = run(environ, "serve")
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == "headrace: the engine ended with code 5: ImportError: no torch"


def test_a_summary_then_answers_then_a_clean_end(environ: dict[str, str]) -> None:
    with serving(environ, "--served-model-name", "tiny") as process:
        lines = summary(process)
        with urllib.request.urlopen(url_of(lines) + "/models", timeout=PATIENCE_S) as answer:
            assert [model["id"] for model in json.load(answer)["data"]] == ["tiny"]
        process.send_signal(signal.SIGTERM)
        code, errors = end(process)
    assert code == 0, errors
    assert not any(ord(character) < 32 for line in lines for character in line)
    assert "16,384 tokens in 1,024 blocks of 16: 8.0 requests of full context" in "\n".join(lines)
    assert "\x1b" not in errors
    assert "weights ..." in errors.splitlines()


def test_a_server_ends_with_its_standard_input_where_it_is_told_to(environ: dict[str, str]) -> None:
    command = [sys.executable, "-m", "gateway", "serve", "--end-with-stdin"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environ, text=True, **pipes) as process:
        try:
            url = url_of(summary(process))
            assert process.stdin
            process.stdin.write("not the end")
            process.stdin.flush()
            with urllib.request.urlopen(url + "/models", timeout=PATIENCE_S) as answer:
                assert answer.status == 200
            process.stdin.close()
            assert process.wait(PATIENCE_S) == 0
        finally:
            process.kill()


def test_the_curl_line_of_the_summary_answers_as_it_stands(environ: dict[str, str]) -> None:
    with serving(environ) as process:
        line = summary(process)[-1]
        answer = subprocess.run(
            ["bash", "-c", line], env=environ, capture_output=True, text=True, timeout=PATIENCE_S, check=True
        )
        process.send_signal(signal.SIGINT)
        assert end(process)[0] == 0
    assert json.loads(answer.stdout)["choices"][0]["finish_reason"] == "length"


def test_with_a_key_the_curl_line_answers_and_nobody_else(environ: dict[str, str]) -> None:
    keyed = {**environ, "HEADRACE_API_KEY": "sk-one"}
    with serving(keyed, "--limit-rpm", "60") as process:
        lines = summary(process)
        answer = subprocess.run(
            ["bash", "-c", f"{lines[-1]} -i"], env=keyed, capture_output=True, text=True, timeout=PATIENCE_S, check=True
        )
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(url_of(lines) + "/models", timeout=PATIENCE_S)
        refused.value.close()
        process.send_signal(signal.SIGTERM)
        code, errors = end(process)
    assert (code, refused.value.code) == (0, 401)
    assert "x-ratelimit-remaining-requests: 59" in answer.stdout and "finish_reason" in answer.stdout
    assert "sk-one" not in "\n".join(lines) + errors


def test_a_signal_before_the_server_is_ready_ends_it(environ: dict[str, str], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "started")
    program_of(environ).write_text(
        f"open({str(tmp_path / 'started')!r}, 'w').close()\nimport sys\nsys.stdin.readline()\nsys.stdin.read()\n"
    )
    with serving(environ) as process:
        (tmp_path / "started").read_text()  # the engine runs and will never be ready
        process.send_signal(signal.SIGTERM)
        code, errors = end(process)
    assert code == 128 + signal.SIGTERM
    assert "Traceback" not in errors


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_model_is_fetched_ends_it_with_its_number(
    monkeypatch: pytest.MonkeyPatch, signum: signal.Signals
) -> None:
    def fetching(*args: object) -> int:
        signal.raise_signal(signum)
        raise AssertionError("it went on")

    monkeypatch.setattr("gateway.serve.serve", fetching)
    monkeypatch.setattr("gateway.cli.configure_logging", lambda *how: None)
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert CliRunner().invoke(app, ["serve"]).exit_code == 128 + signum
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_gateway_whose_server_is_another_one_now_ends_with_a_line_and_a_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So that what started it starts it again."""

    def serve(*args: object) -> int:
        raise ServerReplaced("another one now")

    monkeypatch.setattr("gateway.serve.serve", serve)
    monkeypatch.setattr("gateway.cli.configure_logging", lambda *how: None)
    monkeypatch.setattr("signal.signal", lambda *how: None)
    ended = CliRunner().invoke(app, ["serve"])
    assert (ended.exit_code, ended.stderr) == (1, "headrace: another one now\n")
