"""A server of our own, for as long as this program lives: `headrace serve` as a child on a free port of the loopback,
with a key that nobody else has. It ends when its standard input is closed, so even kill -9 leaves nothing behind."""

from __future__ import annotations

import os
import queue
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import IO

import msgspec

from chat.flags import Flags

COMMAND = (sys.executable, "-P", "-m", "gateway", "serve")
OWN = ("--host=127.0.0.1", "--port=0", "--log-format=json", "--log-level=info", "--end-with-stdin")
NANOCHAT = "nanochat:"
START_S = 2 * 3600.0  # a large model may have to be fetched
END_S = 20.0
LAST_WORDS_S = 2.0
TICK_S = 0.5
MAX_LINE_BYTES = 1 << 20


class StartFailed(Exception):
    """One line. code: the exit code of the server, 2 where an option is wrong."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


class _Line(msgspec.Struct):
    """Of its log, or the one that says that it is ready."""

    message: str = ""
    level: str = ""
    phase: str = ""
    url: str = ""
    model: str = ""


def server_options(flags: Flags) -> list[str]:
    """The options of `headrace serve` that these flags mean."""
    is_nanochat = (flags.source, flags.model_tag, flags.step) != (None, None, None)
    options = {
        "model": flags.model or (NANOCHAT if is_nanochat else None),
        "source": flags.source,
        "model-tag": flags.model_tag,
        "step": flags.step,
        "device": flags.device_type,
        "dtype": flags.dtype,
    }
    return [f"--{name}={value}" for name, value in options.items() if value is not None]


@contextmanager
def own_server(options: Sequence[str], environ: Mapping[str, str], show: Callable[[str], None]) -> Iterator[OwnServer]:
    """Ready. Raises StartFailed."""
    server = OwnServer(options, environ)
    try:
        server.wait_until_ready(show)
        yield server
    finally:
        server.end()


class OwnServer:
    def __init__(self, options: Sequence[str], environ: Mapping[str, str]) -> None:
        self.url = self.model = ""
        self.api_key = secrets.token_urlsafe(24)
        self._problem = ""  # the last that it complained of
        self._lines: queue.SimpleQueue[_Line | None] = queue.SimpleQueue()  # until it is ready
        self._process = subprocess.Popen(
            [*COMMAND, *OWN, *options],
            env={**environ, "HEADRACE_API_KEY": self.api_key},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the answer
        )
        assert self._process.stdout and self._process.stderr
        self._listeners = [
            threading.Thread(target=self._listen, args=(stream,), daemon=True)
            for stream in (self._process.stdout, self._process.stderr)
        ]
        for listener in self._listeners:
            listener.start()

    def wait_until_ready(self, show: Callable[[str], None]) -> None:
        """Raises StartFailed."""
        began, phase = time.monotonic(), "starting"
        while not self.url:
            seconds = time.monotonic() - began
            if seconds > START_S:
                raise StartFailed(f"the server is not ready after {START_S / 3600:g} hours")
            show(f"{phase} ... {seconds:.0f} s")
            with suppress(queue.Empty):
                line = self._lines.get(timeout=TICK_S)
                if line is None:
                    raise StartFailed(self.why_it_ended() or "the server closed its output", self._code)
                phase = line.phase or phase
                self.url, self.model = line.url, line.model

    def why_it_ended(self) -> str:
        """ "": it lives."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(LAST_WORDS_S if self._lines_ended else 0)
        if self._process.poll() is None:
            return ""
        for listener in self._listeners:
            listener.join(LAST_WORDS_S)
        return self._problem or f"the server ended with code {self._process.returncode}"

    @property
    def _code(self) -> int:
        return 2 if self._process.returncode == 2 else 1

    @property
    def _lines_ended(self) -> bool:
        return not all(listener.is_alive() for listener in self._listeners)

    def end(self) -> None:
        assert self._process.stdin
        try:
            with suppress(BrokenPipeError):
                self._process.stdin.close()
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            pass
        finally:  # also of a second Ctrl-C
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)  # of a session of its own
                self._process.wait(END_S)

    def _listen(self, stream: IO[bytes]) -> None:
        decode = msgspec.json.Decoder(_Line).decode
        while data := stream.readline(MAX_LINE_BYTES):
            try:
                line = decode(data)
            except msgspec.MsgspecError:  # what Python says where it cannot even begin
                line = _Line(data.decode(errors="replace").strip(), "error")
            if line.level in ("error", "critical"):
                self._problem = line.message
            if not self.url:
                self._lines.put(line)
        self._lines.put(None)
