"""The engine's log: a LogLine as JSON a line on standard error, also of exceptions that nobody caught."""

from __future__ import annotations

import json
import logging
import sys
import threading

import msgspec

from scheduler.protocol import LogLine

MAX_MESSAGE_CHARS = 2000
MAX_EXCEPTION_CHARS = 8000  # its end, which names the error

log = logging.getLogger("headrace.engine")


class LineFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        exception = None
        if record.exc_info and record.exc_info[0] is not None:
            exception = _clean(self.formatException(record.exc_info)[-MAX_EXCEPTION_CHARS:])
        message = _clean(record.getMessage()[:MAX_MESSAGE_CHARS])
        line = LogLine(record.levelname, record.name, message, exception, getattr(record, "port", None))
        return json.dumps(msgspec.structs.asdict(line))  # ASCII, whatever the stream's encoding


def _clean(text: str) -> str:
    """Without lone surrogates, which names of files may have and JSON may not."""
    return text.encode(errors="replace").decode()


def configure_logging() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.captureWarnings(True)
    sys.excepthook = lambda kind, error, trace: log.critical("the engine failed", exc_info=(kind, error, trace))
    threading.excepthook = lambda seen: log.critical(
        "a thread of the engine failed",
        exc_info=(seen.exc_type, seen.exc_value or seen.exc_type(), seen.exc_traceback),
    )
