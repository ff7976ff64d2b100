"""A profiler's trace of the next steps, for whoever asks: when it begins and ends and where it goes. What traces is
behind a protocol. Whatever fails here fails the profile, never a step."""

from __future__ import annotations

import gzip
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from scheduler.protocol import DropProfile, Profile, Profiled

log = logging.getLogger("headrace.engine")

CHUNK_BYTES = 1 << 20
GZIP_LEVEL = 1  # a fifteenth of the size; higher levels take several times as long for a little less
MAX_EXPANSION = 16  # of the file before it is compressed, over the size that it may have then
CLOSE_S = 1.0  # for a file that is being written when the engine ends


class Trace(Protocol):
    def write(self, path: Path) -> None:
        """As Chrome trace JSON. From any thread, once."""


class Tracer(Protocol):
    """All from one thread. `start` may follow any end."""

    def start(self) -> None: ...
    def begin_step(self, number: int) -> None: ...
    def end_step(self) -> None: ...
    def stop(self) -> Trace: ...


@dataclass(slots=True)
class _Job:
    connection: int
    asked: Profile
    deadline: float
    num_steps: int = 0
    dropped: threading.Event = field(default_factory=threading.Event)

    def answer(self, outcome: str, message: str = "", num_bytes: int = 0) -> Profiled:
        return Profiled(self.asked.profile_id, outcome, self.num_steps, num_bytes, message)  # type: ignore[arg-type]


class Profiles:
    """At most one under way: tracing steps, or writing what was traced in a thread of its own."""

    def __init__(
        self,
        tracer: Tracer | None,
        send: Callable[[int, Profiled], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """tracer None: profiling is off. `send` is also called from the thread that writes."""
        self._tracer = tracer
        self._send = send
        self._clock = clock
        self._tracing: _Job | None = None
        self._writing: _Job | None = None
        self._writer: threading.Thread | None = None

    def begin(self, connection: int, asked: Profile) -> None:
        job = _Job(connection, asked, self._clock() + asked.timeout_s)
        if self._tracer is None:
            self._send(connection, job.answer("off"))
        elif self._tracing is not None or self._writing is not None:
            self._send(connection, job.answer("busy"))
        else:
            self._tracing = job
            self._attempt(job, self._tracer.start)

    def around(self, step: Callable[[], bool]) -> bool:
        """Runs `step`, which tells whether there was one, under the profile that is under way, if one is."""
        job = self._tracing
        return step() if job is None else self._trace(job, step)

    def drop(self, connection: int, asked: DropProfile | None = None) -> None:
        """That profile, or all of a gateway that is gone."""
        for job in (self._tracing, self._writing):
            if job is None or job.connection != connection:
                continue
            if asked is None or asked.profile_id == job.asked.profile_id:
                job.dropped.set()
                if job is self._tracing:
                    self._discard()

    def close(self) -> None:
        """What is under way is lost, with the gateway or the engine that ends."""
        if self._tracing is not None:
            self._discard()
        if self._writing is not None and self._writer is not None:
            self._writing.dropped.set()
            self._writer.join(CLOSE_S)

    # --- tracing, by the step loop ---

    def _trace(self, job: _Job, step: Callable[[], bool]) -> bool:
        tracer = self._tracer
        assert tracer is not None
        self._attempt(job, lambda: tracer.begin_step(job.num_steps + 1))
        landed = step()
        if self._tracing is job:  # or the step has brought its end
            self._attempt(job, tracer.end_step)
        if self._tracing is job:
            job.num_steps += landed
            if job.num_steps >= job.asked.steps or self._clock() >= job.deadline:
                self._end(job)
        return landed

    def _attempt(self, job: _Job, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # whatever it is, whoever asked is told
            log.exception("profiling failed")
            self._discard()
            self._send(job.connection, job.answer("failed", _line(error)))

    def _discard(self) -> None:
        assert self._tracer is not None
        self._tracing = None
        try:
            self._tracer.stop()
        except Exception:  # there may be nothing to stop
            log.debug("the profiler does not stop", exc_info=True)

    def _end(self, job: _Job) -> None:
        assert self._tracer is not None
        if job.num_steps == 0:
            self._discard()
            self._send(job.connection, job.answer("nothing"))
            return
        self._tracing = None
        try:
            trace = self._tracer.stop()
        except Exception as error:  # as above
            log.exception("profiling failed")
            self._send(job.connection, job.answer("failed", _line(error)))
            return
        self._writing = job
        self._writer = threading.Thread(target=self._write, args=(job, trace), name="engine-trace", daemon=True)
        self._writer.start()

    # --- writing, by the thread ---

    def _write(self, job: _Job, trace: Trace) -> None:
        path = Path(job.asked.path)
        raw = path.with_suffix(".raw")
        try:
            trace.write(raw)
            answer = self._compressed(job, raw, path)
        except Exception as error:  # a full disk, a folder that is gone with its gateway
            if not job.dropped.is_set():
                log.exception("a trace cannot be written")
            answer = job.answer("failed", _line(error))
        raw.unlink(missing_ok=True)
        if job.dropped.is_set() or answer.outcome != "done":
            path.unlink(missing_ok=True)
        self._writing = None  # before the answer: the next one may be asked for at once
        if not job.dropped.is_set():
            self._send(job.connection, answer)

    def _compressed(self, job: _Job, raw: Path, path: Path) -> Profiled:
        max_bytes = job.asked.max_bytes
        if raw.stat().st_size > MAX_EXPANSION * max_bytes:
            return job.answer("too_large")
        with raw.open("rb") as source, path.open("xb") as target:
            last = b""
            with gzip.GzipFile("", "wb", GZIP_LEVEL, target, mtime=0) as packed:
                while (chunk := source.read(CHUNK_BYTES)) and not job.dropped.is_set():
                    packed.write(chunk)
                    last = chunk.rstrip()[-1:] or last
                    if target.tell() > max_bytes:
                        return job.answer("too_large")
            if target.tell() > max_bytes:  # with what was still to be compressed
                return job.answer("too_large")
            if last != b"}":  # the profiler does not tell when it cannot write
                return job.answer("failed", "the trace is incomplete; is the disk full?")
            return job.answer("done", num_bytes=target.tell())


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())[:500]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
