"""`headrace chat` as a person has it: in a real terminal, tmux (Debian's package), with the real model."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fixtures.server import MODEL, PATIENCE_S, ROOT, RunningServer, environment, eventually, processes

STORY = "Write a long story about a dragon."
STOPPED = "(stopped)"


class Terminal:
    """A program in a tmux of its own. What it draws is read as a person would: lines of text."""

    def __init__(self, folder: Path) -> None:
        path = shutil.which("tmux")
        assert path is not None, "there is no tmux; on Debian and Ubuntu: apt install tmux"
        settings = folder / "tmux.conf"
        self._exit_code = folder / "exit-code"
        settings.write_text("set -g remain-on-exit on\nset -g history-limit 5000\nset -sg escape-time 20\n")
        self._tmux = (path, "-u", "-S", str(folder / "tmux"), "-f", str(settings))
        self._environ = {**environment(), "XDG_STATE_HOME": str(folder / "state"), "PYTHONPATH": str(ROOT)}
        self._environ |= {"HEADRACE_MAX_MODEL_LEN": "2048", "HEADRACE_KV_CACHE_MEMORY": "256MiB", "LC_ALL": "C.UTF-8"}
        self._environ.pop("TMUX", None)

    def start(self, *flags: str, output: Path | None = None) -> None:
        command = shlex.join([sys.executable, "-m", "gateway", "chat", *flags])
        command += f" > {shlex.quote(str(output))}" if output else ""
        told = shlex.quote(str(self._exit_code))
        command = f"trap : INT; {command}; echo $? > {told}.new; mv {told}.new {told}"
        self._run("new-session", "-d", "-x", "100", "-y", "40", "-c", str(ROOT), command)

    def end(self) -> None:
        subprocess.run([*self._tmux, "kill-server"], capture_output=True, timeout=PATIENCE_S)

    def _run(self, *arguments: str, said: str | None = None) -> str:
        ran = subprocess.run(
            [*self._tmux, *arguments],
            env=self._environ,
            input=said,
            check=True,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
        return ran.stdout

    def type(self, *texts: str) -> None:
        """As if typed, without Enter."""
        for text in texts:
            self._run("send-keys", "-l", text)

    def press(self, *keys: str) -> None:
        self._run("send-keys", *keys)

    def enter(self, text: str) -> None:
        self.type(text)
        self.press("Enter")

    def paste(self, text: str) -> None:
        self._run("load-buffer", "-", said=text)
        self._run("paste-buffer", "-p")

    @property
    def text(self) -> str:
        """All of it, from the beginning; lines that were folded are whole."""
        lines = self._run("capture-pane", "-p", "-J", "-S", "-").splitlines()
        return "\n".join(line.rstrip() for line in lines).rstrip()

    def wait(self, look: Callable[[str], bool], what: str) -> str:
        """The text, once that is true of it."""
        try:
            return eventually(lambda: text if look(text := self.text) else "", what)
        except AssertionError as error:
            raise AssertionError(f"{error}; on the screen:\n{self.text}") from None

    def wait_for(self, part: str) -> str:
        return self.wait(lambda text: part in text, part)

    def wait_for_prompt(self) -> str:
        return self.wait(lambda text: text.endswith("\n>"), "a prompt")

    def ask(self, text: str) -> str:
        """The answer, or what a command says."""
        self.enter(text)
        shown = self.wait(lambda seen: f"> {text}\n" in seen and seen.endswith("\n>"), f"an answer to {text}")
        return shown.rpartition(f"> {text}\n")[2].removesuffix("\n>").strip("\n")

    @property
    def pid(self) -> int:
        shell = int(self._run("display-message", "-p", "#{pane_pid}"))
        (found,) = (pid for pid, parent in processes().items() if parent == shell)
        return found

    def exit_code(self) -> int:
        """From the shell: tmux 3.3 does not always notice how a program ended."""
        self.wait(lambda text: self._exit_code.exists(), "its end")
        return int(self._exit_code.read_text())


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    made = Terminal(tmp_path)
    try:
        yield made
    finally:
        made.end()


@pytest.fixture
def talking(terminal: Terminal, server: RunningServer) -> Terminal:
    terminal.start("--url", server.url, "-t", "0")
    assert f"{MODEL} at {server.api}. Ctrl-D or quit ends" in terminal.wait_for_prompt()
    return terminal


def test_an_answer_streams_and_ctrl_c_stops_it_and_the_next_one_works(talking: Terminal, server: RunningServer) -> None:
    talking.enter(STORY)
    first = talking.wait(lambda text: len(text.rpartition(STORY)[2]) > 20, "the begin of an answer")
    second = talking.wait(lambda text: len(text) > len(first) + 20, "more of it")
    third = talking.wait(lambda text: len(text) > len(second) + 20, "and more")
    assert second.startswith(first) and third.startswith(second) and "\n>" not in third.rpartition(STORY)[2]
    talking.press("C-c")
    assert f"\n{STOPPED}\n" in talking.wait_for_prompt()
    server.metrics_when_idle()
    assert "Paris" in talking.ask("What is the capital of France?")
    assert "all 2 answers" in talking.ask("/stats")


def test_what_is_typed_early_waits_for_its_line(talking: Terminal) -> None:
    talking.ask("/set max_tokens 40")
    talking.enter(STORY)
    talking.wait(lambda text: len(text.rpartition(STORY)[2]) > 5, "the begin of an answer")
    talking.type("early bird")
    text = talking.wait(lambda text: text.endswith("\n> early bird"), "it, in a line of its own")
    assert text.count("early bird") == 1 and "(cut off: " in text


def test_settings_system_prompt_clear_and_retry(talking: Terminal) -> None:
    assert talking.ask("/set temperature 0.6") == "temperature 0.6"
    assert talking.ask("/set temperature 0") == "temperature 0.0"
    assert talking.ask("/set max_tokens 1") == "max_tokens 1"
    alone = talking.ask("Say hello.")
    assert alone.endswith("(cut off: the limit of tokens is reached)")
    assert "last answer: unknown" not in talking.ask("/stats")
    assert talking.ask("/system You are a pirate who speaks of rum in every sentence.").startswith("system: You are")
    talking.ask("Say hello.")
    with_turns = int(talking.ask("/stats").split("last answer: ")[1].split()[0])
    assert talking.ask("clear") == "Conversation cleared."
    talking.ask("Say hello.")
    assert int(talking.ask("/stats").split("last answer: ")[1].split()[0]) < with_turns
    again = talking.ask("/retry")
    assert again.startswith("> Say hello.\n")
    assert "all 4 answers" in talking.ask("/stats")
    assert talking.ask("/nonsense") == "no such command: /nonsense; /help lists them"
    assert talking.ask("/set top_p 7") == "top_p: from 0 to 1, not 7.0"


def test_several_lines_history_and_saving(talking: Terminal, tmp_path: Path) -> None:
    talking.ask("/set max_tokens 2")
    talking.enter('"""one')
    talking.enter("two")
    talking.enter('three"""')
    talking.wait_for_prompt()
    talking.paste("four\nfive")
    talking.wait_for("> four\nfive")
    talking.press("M-Enter")
    talking.type("sex")
    talking.press("Left", "BSpace", "i", "Enter")
    talking.wait(lambda text: "\nsix\n" in text and text.endswith("\n>"), "an answer to six")
    talking.press("Up", "Up")
    talking.wait(lambda text: text.endswith("> one\ntwo\nthree"), "what was typed before")
    talking.press("Enter")
    talking.wait(lambda text: text.count("(cut off: ") == 3 and text.endswith("\n>"), "a third answer")
    assert talking.ask(f"/save {tmp_path}/talk.md") == f"6 messages written to {tmp_path}/talk.md"
    asked = (tmp_path / "talk.md").read_text().split("## user\n\n")[1:]
    assert [text.split("\n\n##")[0] for text in asked] == ["one\ntwo\nthree", "four\nfive\nsix", "one\ntwo\nthree"]
    talking.press("C-d")
    assert talking.exit_code() == 0


def test_ctrl_c_at_a_prompt_ends_nothing(talking: Terminal) -> None:
    talking.type("half a li")
    talking.press("C-c")
    talking.wait(lambda text: text.endswith("> half a li\n>"), "a new prompt, and nothing more")
    talking.press("C-c")
    talking.wait(lambda text: text.endswith("\n>\nCtrl-D or quit ends; /help lists commands\n>"), "how to quit")
    talking.enter("quit")
    assert talking.exit_code() == 0


def test_answers_go_where_standard_output_goes(terminal: Terminal, server: RunningServer, tmp_path: Path) -> None:
    terminal.start("--url", server.url, "-t", "0", output=tmp_path / "answers")
    terminal.wait_for_prompt()
    terminal.ask("What is the capital of France?")
    terminal.ask("/set temperature 0.5")
    terminal.press("C-d")
    assert terminal.exit_code() == 0
    (answer,) = (tmp_path / "answers").read_text().splitlines()
    assert "Paris" in answer and "\x1b" not in answer and answer not in terminal.text


def test_a_server_of_its_own_shows_its_start_and_ends_with_the_program(terminal: Terminal, gguf_path: Path) -> None:
    terminal.start("-t", "0", "-d", "float32", "--max-tokens", "64")
    terminal.wait(lambda text: " ... " in text, "the start")
    assert terminal.wait_for_prompt().startswith(f"{MODEL}. Ctrl-D or quit ends")  # and the progress has gone
    assert "Paris" in terminal.ask("What is the capital of France?")
    children = [pid for pid, parent in processes().items() if parent == terminal.pid]
    family = children + [pid for pid, parent in processes().items() if parent in children]
    assert len(family) == 2  # the gateway and its engine
    os.kill(terminal.pid, signal.SIGKILL)
    eventually(lambda: not set(family) & set(processes()), "the server has ended")
