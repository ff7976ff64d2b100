"""One run of an engine's program: started, connected to, listened to, stopped. Knows no requests and no restarts."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from gateway.engines.handles import Streams
from gateway.engines.socket import EngineFailed
from scheduler.protocol import EngineConfig, LogLine

MAX_LINES = 200  # of its output that are kept
MAX_LINE_BYTES = 1 << 16
MAX_WORDS_CHARS = 4096  # of a line that is kept
CONNECT_PERIOD_S = 0.03
CONNECT_LIMIT_S = 300.0  # importing torch from a cold disk takes long
LAST_WORDS_S = 1.0
STOP_S = 5.0
KILL_S = 5.0

log = logging.getLogger("headrace.engine")
_decode_line = msgspec.json.Decoder(LogLine).decode


class EngineProcess:
    def __init__(self, process: asyncio.subprocess.Process, socket_path: str) -> None:
        self.lines: deque[str] = deque(maxlen=MAX_LINES)
        self._process = process
        self._socket_path = socket_path
        self._is_ours = False  # its end
        self._port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._listening = asyncio.create_task(self._listen(), name="engine output")

    @classmethod
    async def start(cls, command: Sequence[str], config: EngineConfig, environ: Mapping[str, str]) -> EngineProcess:
        """The program reads its configuration from standard input and ends when that is closed: it cannot outlive us.
        A session of its own keeps a terminal's Ctrl-C away from it: the gateway drains first, then stops it."""
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env=dict(environ),
                start_new_session=True,
            )
        except OSError as error:
            raise EngineFailed("internal", f"cannot start the engine {command[0]}: {error.strerror}") from error
        assert process.stdin
        process.stdin.write(msgspec.json.encode(config) + b"\n")
        return cls(process, config.socket_path)

    @property
    def pid(self) -> int | None:
        return self._process.pid

    async def connect(self) -> Streams:
        """As soon as its socket is there. Raises EngineFailed if it ends first, or if nothing comes for too long."""
        for _ in range(int(CONNECT_LIMIT_S / CONNECT_PERIOD_S)):
            if self._process.returncode is not None:
                raise EngineFailed("lost", await self.last_words() or "the engine ended")
            try:
                return await asyncio.open_unix_connection(self._socket_path)
            except (FileNotFoundError, ConnectionRefusedError):
                await asyncio.sleep(CONNECT_PERIOD_S)
        raise EngineFailed("lost", f"the engine did not open its socket within {CONNECT_LIMIT_S:g} s")

    async def port(self) -> int:
        """Of one that was told to listen on TCP. Raises EngineFailed as `connect` does."""
        ended = asyncio.create_task(self._process.wait())
        try:
            await asyncio.wait({ended, self._port}, timeout=CONNECT_LIMIT_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
        if self._port.done():
            return self._port.result()
        raise EngineFailed("lost", await self.last_words() or f"the engine did not listen within {CONNECT_LIMIT_S:g} s")

    def lead_to(self, path: Path) -> None:
        """By a name that stays, other gateways find the engine of now."""
        new = path.with_suffix(".new")
        new.unlink(missing_ok=True)
        new.symlink_to(self._socket_path)
        new.replace(path)

    @property
    def was_killed(self) -> bool:
        """By nothing that it did itself, nor by us."""
        return self._process.returncode == -signal.SIGKILL and not self._is_ours

    async def last_words(self) -> str | None:
        """How it ended, and the last line of its output, which for a Python program names the error. None: it runs."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS_S):
                await self._process.wait()
                await asyncio.shield(self._listening)
        if self._process.returncode is None:
            return None
        said = f": {self.lines[-1]}" if self.lines else ""
        return f"the engine {_ending(self._process.returncode)}{said}"

    async def stop(self) -> None:
        """Asks, waits, then forces. Safe to call again."""
        try:
            if self._process.stdin:
                self._process.stdin.close()
            if self._process.returncode is None:
                self._process.terminate()
            if not await self._ended_within(STOP_S):
                log.warning("the engine did not stop within %g s; killing it", STOP_S)
        finally:
            self.kill()
            await self._ended_within(KILL_S)
            await self._stop_listening()

    def kill(self) -> None:
        """At once, its own children too."""
        if self._process.returncode is None:  # so its process group is still its own
            self._is_ours = True
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def _ended_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._process.wait()
        except TimeoutError:
            return False
        return True

    async def _stop_listening(self) -> None:
        await asyncio.wait({self._listening}, timeout=LAST_WORDS_S)  # what it still says; a child may hold the pipe
        self._listening.cancel()
        await asyncio.wait({self._listening})

    async def _listen(self) -> None:
        assert self._process.stdout
        rest = b""
        while data := await self._process.stdout.read(MAX_LINE_BYTES):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self._note(line)
            if len(rest) > MAX_LINE_BYTES:
                self._note(rest)
                rest = b""
        self._note(rest)

    def _note(self, line: bytes) -> None:
        said = parse_line(line)
        if said is not None:
            self.lines.append(_gist(said)[:MAX_WORDS_CHARS])
            _relay(said)
            if said.port is not None and not self._port.done():
                self._port.set_result(said.port)


def parse_line(line: bytes) -> LogLine | None:
    """Anything but a line of its log is information: what libraries print, or Python at its end. None: it is empty."""
    try:
        return _decode_line(line)
    except msgspec.MsgspecError:
        text = line.decode(errors="replace").rstrip()
        return LogLine("INFO", log.name, text) if text else None


def _gist(said: LogLine) -> str:
    return said.exception.rstrip().rpartition("\n")[2] if said.exception else said.message


def _relay(said: LogLine) -> None:
    level = logging.getLevelNamesMapping().get(said.level, logging.INFO)
    if log.isEnabledFor(level):
        extra = {"origin": "engine"}
        record = log.makeRecord(said.logger, level, "", 0, "%s", (said.message,), None, extra=extra)
        record.exc_text = said.exception
        log.handle(record)


def _ending(returncode: int) -> str:
    if returncode >= 0:
        return f"ended with code {returncode}"
    name = signal.Signals(-returncode).name
    return f"was ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
