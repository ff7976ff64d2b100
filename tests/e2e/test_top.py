"""`headrace top` of a real server."""

import subprocess
import sys

from tests.fixtures.server import PATIENCE_S, ROOT, RunningServer, environment


def run_top(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gateway", "top", *arguments],
        cwd=ROOT,
        env={**environment(), "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )


def test_once_tells_how_things_stand(server: RunningServer) -> None:
    server.greedy("One, two,")
    ran = run_top("--once", "--url", server.url)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "blocks held" in ran.stdout and "SmolLM2-135M-Instruct" in ran.stdout and "completions" in ran.stdout


def test_where_nobody_serves() -> None:
    ran = run_top("--url", "http://127.0.0.1:1")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr == "headrace: cannot reach http://127.0.0.1:1: Connection refused\n"
