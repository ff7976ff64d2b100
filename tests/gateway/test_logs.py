"""Lines of JSON: of the gateway's log, of an engine's, and of what Python itself would print."""

import json
import logging
import re
import subprocess
import sys
from datetime import datetime
from typing import Any, ClassVar

import pytest

from gateway.config import log_format_of
from gateway.engines.process import MAX_WORDS_CHARS, EngineProcess, parse_line
from gateway.engines.socket import EngineFailed
from gateway.logs import TEXT, Event, JsonFormatter
from scheduler.protocol import EngineConfig, LogLine
from tests.fixtures.engines import PATIENCE_S, ROOT
from tests.gateway.test_cli import environ, program_of, run, serving, write_engine

__all__ = ["environ"]  # a fixture

GATEWAYS_WORDS = """
import logging, sys, threading, warnings
from gateway.logs import configure_logging
configure_logging("info", "json")
logging.getLogger("headrace.test").info("caf\\u00e9 %s\\nand %s", "\\udc80", 2)
logging.getLogger("headrace.test").debug("unseen")
warnings.warn("mind the gap")
def fail():
    raise KeyError("of a thread")
thread = threading.Thread(target=fail)
thread.start()
thread.join()
class Late:
    def __del__(self):
        raise OSError("of a finalizer")
Late()
raise ValueError("of the end")
"""
ENGINES_WORDS = """
import logging, sys, threading, warnings
from engine.logs import configure_logging
configure_logging()
log = logging.getLogger("headrace.engine.loop")
log.warning("one\\ntwo \\udc80 \\u00e9")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("a step failed: %s", "x" * 5000)
warnings.warn("mind the gap")
print("words of a library", flush=True)
raise ImportError("no torch")
"""


class Told(Event, frozen=True):
    says: ClassVar[str] = "told"

    number: int
    text: str


def formatted(record: logging.LogRecord) -> dict[str, Any]:
    text = JsonFormatter().format(record)
    assert "\n" not in text and text.isascii()
    line: dict[str, Any] = json.loads(text)
    return line


def check_lines(output: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in output.splitlines()]
    for line in lines:
        assert {"time", "level", "logger", "message"} <= set(line)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
        datetime.fromisoformat(line["time"])
        assert line["level"] in ("debug", "info", "warning", "error", "critical")
    return lines


def test_a_message_of_fields_is_json_as_text_and_flat_in_json(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("headrace.test").warning(Told(1, "é"))
    [record] = caplog.records
    assert logging.Formatter(TEXT).format(record).endswith('WARNING headrace.test: {"number":1,"text":"é"}')
    line = formatted(record)
    del line["time"]
    assert line == {"level": "warning", "logger": "headrace.test", "message": "told", "number": 1, "text": "é"}


def test_all_that_python_prints_of_a_gateway_is_a_line_of_json() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", GATEWAYS_WORDS],
        cwd=ROOT,
        env={"PYTHONIOENCODING": "ascii:backslashreplace", "PATH": ""},
        capture_output=True,
        timeout=PATIENCE_S,
    )
    assert (ended.returncode, ended.stdout) == (1, b"")
    words, warning, thread, finalizer, end = check_lines(ended.stderr.decode("ascii"))
    assert (words["logger"], words["message"]) == ("headrace.test", "café \udc80\nand 2")
    assert (warning["level"], warning["logger"]) == ("warning", "py.warnings") and "mind the gap" in warning["message"]
    for line, error in ((thread, "KeyError: 'of a thread'"), (finalizer, "OSError: of a finalizer")):
        assert line["level"] == "error" and line["exception"].endswith(error)
    assert end["level"] == "critical"
    assert end["exception"].startswith("Traceback") and end["exception"].endswith("ValueError: of the end")


async def test_an_engines_lines_keep_level_and_traceback(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    config = EngineConfig(model="none", format="dummy", socket_path="/nowhere")
    process = await EngineProcess.start([sys.executable, "-c", ENGINES_WORDS], config, {"PYTHONPATH": str(ROOT)})
    with pytest.raises(EngineFailed, match="the engine ended with code 1: ImportError: no torch"):
        await process.connect()
    await process.stop()
    records = [record for record in caplog.records if record.name != "asyncio"]
    warned, failed, warning, printed, end = map(formatted, records)
    assert {line["process"] for line in (warned, failed, warning, printed, end)} == {"engine"}
    assert (warned["level"], warned["logger"]) == ("warning", "headrace.engine.loop")
    assert warned["message"] == "one\ntwo ? é"
    assert failed["level"] == "error" and failed["exception"].endswith("ZeroDivisionError: division by zero")
    assert warning["level"] == "warning" and "mind the gap" in warning["message"]
    assert (printed["level"], printed["logger"]) == ("info", "headrace.engine")
    assert printed["message"] == "words of a library"
    assert end["level"] == "critical" and end["exception"].endswith("ImportError: no torch")
    assert "ZeroDivisionError" in logging.Formatter(TEXT).format(records[1])
    assert max(map(len, process.lines)) <= MAX_WORDS_CHARS


@pytest.mark.parametrize("line", [b'{"level":"INFO"}', b"[1]", b"\xff{", b"12"])
def test_what_is_no_line_of_an_engines_log_is_information(line: bytes) -> None:
    assert parse_line(line) == LogLine("INFO", "headrace.engine", line.decode(errors="replace"))
    assert parse_line(b"  \r") is None


# the command


def the_error(stderr: str) -> str:
    [line] = check_lines(stderr)
    assert (line["level"], line["logger"]) == ("error", "headrace")
    message: str = line["message"]
    return message


def test_errors_that_end_the_process_are_a_line_of_json(environ: dict[str, str]) -> None:
    ended = run(environ, "serve", "--log-format", "json", "--model", "/not/there")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert the_error(ended.stderr).startswith("no model '/not/there'")


def test_an_option_that_is_wrong_is_told_as_json_where_that_was_asked_for(environ: dict[str, str]) -> None:
    ended = run({**environ, "HEADRACE_LOG_FORMAT": "json", "HEADRACE_MAX_SEQS": "many"}, "serve")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert the_error(ended.stderr) == "--max-seqs (or HEADRACE_MAX_SEQS): expected int, not 'many'"


def test_a_file_may_ask_for_it_too(environ: dict[str, str], tmp_path: Any) -> None:
    file = tmp_path / "h.toml"
    file.write_text('log_format = "json"\nprot = 1')
    ended = run(environ, "serve", "--config", str(file))
    assert "did you mean 'port'" in the_error(ended.stderr)
    assert log_format_of({"log_format": "text"}, file) == "text"
    file.write_text("log_format =")
    assert log_format_of({}, file) == "text"


def test_an_engine_that_crashes_at_start_is_quoted(environ: dict[str, str]) -> None:
    write_engine(program_of(environ), "crash", "ImportError: no torch")
    ended = run(environ, "serve", "--log-format", "json")
    lines = check_lines(ended.stderr)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert lines[-1]["message"] == "the engine ended with code 5: ImportError: no torch"
    assert [line["message"] for line in lines if line.get("process") == "engine"] == [
        "loading",
        "ImportError: no torch",
    ]


def test_quiet_levels_leave_the_ready_line(environ: dict[str, str]) -> None:
    with serving(environ, "--log-format", "json", "--log-level", "error") as process:
        assert process.stdout
        ready = json.loads(process.stdout.readline())
        process.terminate()
        rest, errors = process.communicate(timeout=PATIENCE_S)
    assert (ready["message"], ready["level"], rest, errors) == ("ready", "info", "", "")
    assert ready["limits"]["kv_cache_tokens"] == 16_384


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_line_that_nobody_reads_is_lost_and_nothing_else(form: str) -> None:
    words = f"""
import logging, os, sys
from gateway.logs import configure_logging
configure_logging("info", "{form}")
reader, writer = os.pipe()
os.dup2(writer, 2)
os.close(reader)
logging.getLogger("headrace.test").info("unheard")
sys.stdout.write("went on")
sys.stdout.flush()
os._exit(0)
"""
    done = subprocess.run(
        [sys.executable, "-c", words], stdout=subprocess.PIPE, text=True, timeout=PATIENCE_S, cwd=ROOT
    )
    assert (done.returncode, done.stdout) == (0, "went on")
