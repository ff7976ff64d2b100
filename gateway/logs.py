"""The log on standard error: lines of text for people, or one JSON object a line and nothing else. Knows no request."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import threading
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, ClassVar, Literal

import msgspec

NOISY_LIBRARIES = ("asyncio", "httpcore", "httpx", "huggingface_hub")
TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

LogFormat = Literal["text", "json"]

log = logging.getLogger("headrace")
_encode = msgspec.json.Encoder().encode


class Event(msgspec.Struct, frozen=True):
    """What is logged as fields instead of words: as text they are JSON, in a line of JSON they stand at its top level
    and `says` is its message."""

    says: ClassVar[str]

    def __str__(self) -> str:
        return _encode(self).decode()


class StderrHandler(logging.Handler):
    """Looks sys.stderr up for each line, so that progress bars can step aside for it."""

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record)
        # Where nobody reads any more, or the disk is full, a line is lost, and nothing else.
        with contextlib.suppress(OSError, ValueError):
            print(line, file=sys.stderr)


class JsonFormatter(logging.Formatter):
    """time, level, logger, message; process, where it is not the gateway's own; exception; the fields of an Event.
    ASCII only, whatever the stream's encoding."""

    def format(self, record: logging.LogRecord) -> str:
        event = record.msg if isinstance(record.msg, Event) else None
        line: dict[str, Any] = {
            "time": rfc3339(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage() if event is None else event.says,
        }
        if event is not None:
            line |= msgspec.to_builtins(event)
        if (origin := getattr(record, "origin", None)) is not None:
            line["process"] = origin
        if (exception := self._exception(record)) is not None:
            line["exception"] = exception
        return json.dumps(line)

    def _exception(self, record: logging.LogRecord) -> str | None:
        if record.exc_text is None and record.exc_info and record.exc_info[0] is not None:
            record.exc_text = self.formatException(record.exc_info)
        return record.exc_text


def rfc3339(seconds: float) -> str:
    """UTC, to the millisecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def json_line(logger: str, event: Event) -> str:
    """For what is told whatever the level of the log is."""
    record = logging.getLogger(logger).makeRecord(logger, logging.INFO, "", 0, event, (), None)
    return JsonFormatter().format(record)


def configure_logging(level: str, form: LogFormat = "text") -> None:
    handler = StderrHandler()
    handler.setFormatter(JsonFormatter() if form == "json" else logging.Formatter(TEXT))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    for name in NOISY_LIBRARIES:
        logging.getLogger(name).setLevel(logging.WARNING)
    if form == "json":
        _log_what_python_prints()


def _log_what_python_prints() -> None:
    """Warnings, and exceptions that nobody caught."""

    def uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        log.critical("an exception ends the server", exc_info=(kind, error, trace))

    logging.captureWarnings(True)
    sys.excepthook = uncaught
    threading.excepthook = lambda seen: _log_lost("a thread", seen.exc_type, seen.exc_value, seen.exc_traceback)
    sys.unraisablehook = lambda seen: _log_lost("a finalizer", seen.exc_type, seen.exc_value, seen.exc_traceback)


def _log_lost(where: str, kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    log.error("an exception ends %s", where, exc_info=(kind, error or kind(), trace))


def complain(message: str, form: LogFormat) -> None:
    """Of an error that ends the process before or instead of serving: one line."""
    line = " ".join(message.split())
    if form == "json":
        log.error("%s", line)
    else:
        print(f"headrace: {line}", file=sys.stderr)
