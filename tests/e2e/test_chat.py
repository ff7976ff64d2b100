"""`headrace chat` through pipes, with the real model."""

import os
import signal
import subprocess
import sys

from tests.fixtures.server import PATIENCE_S, ROOT, RunningServer, environment

COMMAND = (sys.executable, "-m", "gateway", "chat")
QUESTION = "What is the capital of France?"


def chat(*flags: str, said: bytes = b"") -> tuple[int, str, str]:
    """Exit code, output, errors: of both every byte, newlines too."""
    ran = subprocess.run(
        [*COMMAND, *flags], cwd=ROOT, env=environment(), input=said, capture_output=True, timeout=PATIENCE_S
    )
    return ran.returncode, ran.stdout.decode(), ran.stderr.decode()


def test_a_pipe_gets_the_answer_and_nothing_else(server: RunningServer) -> None:
    body = {"messages": [{"role": "user", "content": QUESTION}], "temperature": 0}
    answer = server.post("/v1/chat/completions", body).json()["choices"][0]["message"]["content"]
    assert "Paris" in answer
    assert chat("--url", server.url, "-t", "0", said=f"{QUESTION}\n".encode()) == (0, answer + "\n", "")
    assert chat("--url", server.url, "-t", "0", "--prompt", QUESTION) == (0, answer + "\n", "")


def test_an_answer_that_is_cut_off_says_so_beside_it(server: RunningServer) -> None:
    code, said, errors = chat("--url", server.api, "-t", "0", "--max-tokens", "3", "-p", "Count from one to ten.")
    assert (code, errors) == (0, "headrace: cut off: the limit of tokens is reached\n")
    assert said.strip() and said.count("\n") == 1


def test_failures_are_exit_codes_and_one_line(server: RunningServer) -> None:
    assert chat("--url", "http://127.0.0.1:1", "-p", "x") == (
        *(1, ""),
        "headrace: cannot reach http://127.0.0.1:1/v1: Connection refused\n",
    )
    code, said, errors = chat("--url", server.url, "--model", "other", "-p", "x")
    assert (code, said) == (1, "") and "'other'" in errors and errors.startswith("headrace: ")
    code, said, errors = chat("--url", server.url, said=b"word " * 5000)
    assert (code, said) == (1, "") and "2048" in errors
    code, said, errors = chat("--url", server.url, "--step", "5", "-p", "x")
    assert (code, said, errors[:16]) == (2, "", "headrace: --step")


def test_ctrl_c_and_a_reader_that_leaves_stop_the_answer(server: RunningServer) -> None:
    command = [*COMMAND, "--url", server.url, "-t", "0", "-p", "Write a long story about a dragon."]
    for leave, code in ((False, 128 + signal.SIGINT), (True, 128 + signal.SIGPIPE)):
        with subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            assert process.stdout and process.stderr
            assert os.read(process.stdout.fileno(), 1)
            if leave:
                process.stdout.close()
            else:
                process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE_S) == code
            assert process.stderr.read() == b""
        server.metrics_when_idle()
