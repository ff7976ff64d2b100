"""A process that checks grammars one by one: what takes too long or too much memory ends it, and nothing else.

Frames on its standard input and output: a length in 4 bytes, then text. It ends when its input is closed.
"""

from __future__ import annotations

import resource
import signal
import struct
import sys
from typing import IO

from llguidance import LLMatcher, LLParserLimits

from scheduler.types import MAX_GRAMMAR_SYMBOLS, MAX_LEXER_STATES

_MAX_PROBLEM_CHARS = 4000
_WALL_PER_CPU = 3  # on a busy machine a check may last longer than it computes
_LENGTH = struct.Struct(">I")
# Those with which the engine compiles.
_LIMITS = LLParserLimits(max_grammar_size=MAX_GRAMMAR_SYMBOLS, max_lexer_states=MAX_LEXER_STATES, verbose_errors=False)


def write_frame(stream: IO[bytes], text: str) -> None:
    data = text.encode(errors="replace")
    stream.write(_LENGTH.pack(len(data)) + data)
    stream.flush()


def read_frame(stream: IO[bytes]) -> str | None:
    """None at the end of the stream."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    data = stream.read(length)
    return data.decode(errors="replace") if len(data) == length else None


def problem_of(grammar: str) -> str:
    is_error, messages = LLMatcher.validate_grammar_with_warnings(grammar, limits=_LIMITS)
    return messages[0][:_MAX_PROBLEM_CHARS] if is_error else ""


def serve(source: IO[bytes], sink: IO[bytes], seconds: float) -> None:
    """The kernel keeps the time: what computes inside llguidance hears of nothing else."""
    while (grammar := read_frame(source)) is not None:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        signal.setitimer(signal.ITIMER_REAL, seconds * _WALL_PER_CPU)
        problem = problem_of(grammar)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        write_frame(sink, problem)


def main() -> None:
    seconds, max_bytes = float(sys.argv[1]), int(sys.argv[2])
    for signum in (signal.SIGINT, signal.SIGTERM):  # its input tells it when to end
        signal.signal(signum, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (max_bytes, max_bytes))
    serve(sys.stdin.buffer, sys.stdout.buffer, seconds)


if __name__ == "__main__":
    main()
