"""Clients that need an environment of their own, each a program of tests/clients that fails on a wrong answer."""

import subprocess
from pathlib import Path

import pytest

from tests.fixtures.server import MODEL, PATIENCE_S, ROOT, RunningServer

CLIENTS = ROOT / "tests" / "clients"
PYTHON = ROOT / ".venv-clients" / "bin" / "python"


def run(program: str | Path, script: str, server: RunningServer) -> None:
    command = [program, CLIENTS / script, server.api, MODEL]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE_S)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize("script", ["with_instructor.py", "with_litellm.py"])
def test_a_client_in_python(server: RunningServer, script: str) -> None:
    run(PYTHON, script, server)


@pytest.mark.parametrize("script", ["openai.mjs", "ai-sdk.mjs"])
def test_a_client_in_javascript(server: RunningServer, script: str) -> None:
    run("node", script, server)
