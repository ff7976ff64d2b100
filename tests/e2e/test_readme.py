"""What README.md tells to paste is run as it stands, only with the port of the server that runs here."""

import re
import subprocess
import sys

import pytest

from tests.fixtures.server import PATIENCE_S, ROOT, RunningServer

DEFAULT = "127.0.0.1:8000"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMANDS = {"sh": ("bash", "-euo", "pipefail", "-c"), "bash": ("bash", "-euo", "pipefail", "-c"), "python": ()}


def asking_blocks() -> list[tuple[str, str]]:
    """(language, text) of those that speak to a running server."""
    found = BLOCK.findall((ROOT / "README.md").read_text())
    return [(language, text) for language, text in found if language in COMMANDS and DEFAULT in text]


def test_there_is_something_to_paste() -> None:
    languages = [language for language, _ in asking_blocks()]
    assert "python" in languages and ("sh" in languages or "bash" in languages)


@pytest.mark.parametrize(("language", "text"), asking_blocks())
def test_a_block_runs(server: RunningServer, language: str, text: str) -> None:
    host, port = server.address
    command = COMMANDS[language] or (sys.executable, "-W", "error", "-c")
    ended = subprocess.run(
        [*command, text.replace(DEFAULT, f"{host}:{port}")], capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip()
    assert '"error"' not in ended.stdout


def test_the_line_that_the_server_prints_runs(server: RunningServer) -> None:
    line = server.output.splitlines()[-1]
    assert line.startswith("curl ")
    ended = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=PATIENCE_S)
    assert ended.returncode == 0 and '"finish_reason":"stop"' in ended.stdout
