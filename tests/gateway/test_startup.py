"""What is shown while the server starts, and the summary after it."""

import io
import json
import shlex
from dataclasses import replace

from rich.console import Console

from gateway.startup import Display, Started, amount, curl_line, print_summary, summary_rows
from scheduler.protocol import EngineConfig
from tests.fixtures.fake_engine import ready

STARTED = Started(
    version="1.2.3",
    model="tiny",
    has_chat=True,
    ready=ready(EngineConfig(model="", format="dummy", socket_path="")),
    replicas=1,
    host="0.0.0.0",
    port=8000,
    phases_s=[("tokenizer", 0.5)],
    total_s=2.0,
)


def test_the_summary_says_where_memory_goes_and_what_it_holds() -> None:
    rows = dict(summary_rows(STARTED))
    assert "replicas" not in rows
    assert dict(summary_rows(replace(STARTED, replicas=3)))["replicas"] == "3, each with what follows"
    assert rows["model"] == "tiny: Echo, 134.5 M parameters"
    assert rows["memory"] == "weights 257 MiB, KV cache 1 GiB"
    assert rows["KV cache"] == "16,384 tokens in 1,024 blocks of 16: 8.0 requests of full context"
    assert rows["started in"] == "2.0 s: tokenizer 0.5 s, weights 0.2 s"
    assert rows["URL"] == "http://127.0.0.1:8000/v1"


def test_the_curl_line_survives_any_name() -> None:
    name = """it's "quoted" $HOME"""
    words = shlex.split(curl_line(replace(STARTED, model=name)))
    assert words[:2] == ["curl", "http://127.0.0.1:8000/v1/chat/completions"]
    assert json.loads(words[-1])["model"] == name


def test_the_curl_line_takes_the_key_from_the_environment() -> None:
    line = curl_line(replace(STARTED, needs_key=True))
    assert '-H "authorization: Bearer $HEADRACE_API_KEY"' in line


def test_a_model_without_a_chat_template_is_asked_to_complete() -> None:
    words = shlex.split(curl_line(replace(STARTED, has_chat=False, host="::")))
    assert words[1] == "http://[::1]:8000/v1/completions"
    assert "prompt" in json.loads(words[-1])


def test_on_a_terminal_there_are_bars() -> None:
    shown = io.StringIO()
    with Display(Console(file=shown, force_terminal=True, width=100)) as display:
        display.report("importing", 0, 0)
        display.report("weights", 1 << 20, 2 << 20)
        display.report("weights", 2 << 20, 2 << 20)
    assert "\x1b" in shown.getvalue()
    assert "2 MiB of 2 MiB" in shown.getvalue()
    assert display._bars is not None
    assert [task.finished for task in display._bars.tasks] == [True, True]


def test_elsewhere_each_phase_is_one_plain_line() -> None:
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=False, width=20)
    with Display(console) as display:
        for done in range(3):
            display.report("fetching a model of a long name", done, 2 << 20)
        display.report("warming [up]", 0, 0)
    assert shown.getvalue() == "fetching a model of a long name (2 MiB) ...\nwarming [up] ...\n"


def test_a_summary_elsewhere_is_plain_and_never_folded() -> None:
    shown = io.StringIO()
    print_summary(Console(file=shown, force_terminal=False, width=20), STARTED)
    lines = shown.getvalue().splitlines()
    assert lines[0] == "headrace 1.2.3 is ready"
    assert lines[-1] == curl_line(STARTED)
    assert len(lines) == 2 + len(summary_rows(STARTED))


def test_amounts() -> None:
    assert (amount(0, 0), amount(3, 30), amount(1 << 20, 1 << 30)) == ("", "3 of 30", "1 MiB of 1 GiB")
