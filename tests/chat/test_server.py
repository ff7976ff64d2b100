"""A server of its own: started, told of, ended whatever happens. The engine behind it is the fake one."""

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.engines import ROOT
from tests.fixtures.server import PATIENCE_S, eventually, processes


@pytest.fixture
def environ(tmp_path: Path, gguf_path: Path) -> dict[str, str]:
    """`-m engine` means the fake one, which echoes prompts. PID has the id of its server."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    program = tmp_path / "path" / "engine" / "__main__.py"
    program.parent.mkdir(parents=True)
    (program.parent / "__init__.py").touch()  # so that it comes before the real one
    program.write_text(
        f"import os, pathlib\npathlib.Path({str(tmp_path / 'pid')!r}).write_text(f'{{os.getppid()}} {{os.getpid()}}')\n"
        "from tests.fixtures.fake_engine import main\n\nmain('serve')\n"
    )
    path = os.pathsep.join((str(tmp_path / "path"), str(ROOT)))
    return {**kept, "PYTHONPATH": path, "HEADRACE_CACHE": str(gguf_path.parent.parent)}


def start(environ: dict[str, str], *flags: str, stdin: int = subprocess.PIPE) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "gateway", "chat", *flags],
        env=environ,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def started(tmp_path: Path) -> list[int]:
    """The processes of the server."""
    return eventually(lambda: [int(pid) for pid in _read(tmp_path / "pid").split()], "the engine has started")


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def is_gone(pids: list[int]) -> bool:
    return not set(pids) & set(processes())


def test_an_answer_and_nothing_is_left(environ: dict[str, str], tmp_path: Path) -> None:
    said, errors = (process := start(environ, "--max-tokens", "9")).communicate("What?", PATIENCE_S)
    assert process.returncode == 0, errors
    assert said == "system\nYou are a helpful AI assistant\n"  # the echo of the prompt that the template makes
    assert errors == "headrace: cut off: the limit of tokens is reached\n"
    assert is_gone(started(tmp_path))


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_with_the_program(environ: dict[str, str], tmp_path: Path, signum: signal.Signals) -> None:
    ours, terminal = pty.openpty()
    try:
        with start(environ, stdin=terminal) as process:
            assert process.stderr
            told = ""
            while not told.endswith("\n> "):  # it waits for a message
                told += process.stderr.read(1) or pytest.fail(f"it ended: {told}")
            pids = started(tmp_path)
            assert not is_gone(pids)
            process.send_signal(signum)
            assert process.wait(PATIENCE_S) == (-signum if signum == signal.SIGKILL else 128 + signum)
            eventually(lambda: is_gone(pids), "the server has ended")
    finally:
        os.close(ours)
        os.close(terminal)


def test_ctrl_c_ends_a_start(environ: dict[str, str], tmp_path: Path) -> None:
    with start(environ, "--prompt", "Hello") as process:
        pids = started(tmp_path)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 128 + signal.SIGINT
    assert is_gone(pids)


@pytest.mark.parametrize(
    ("flags", "code", "problem"),
    [
        (("--model", "/not/there"), 1, "headrace: no model '/not/there': "),
        (("--dtype", "int3"), 2, "headrace: --dtype (or HEADRACE_DTYPE): expected one of auto, "),
    ],
)
def test_a_start_that_fails_is_told_in_one_line(
    environ: dict[str, str], flags: tuple[str, ...], code: int, problem: str
) -> None:
    said, errors = (process := start(environ, "-p", "Hello", *flags)).communicate(timeout=PATIENCE_S)
    assert (process.returncode, said) == (code, "")
    assert errors.startswith(problem) and len(errors.splitlines()) == 1
