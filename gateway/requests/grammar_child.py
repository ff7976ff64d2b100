"""A process that reads and checks grammars one by one: what takes too much time or memory ends it, and nothing else.

Frames on its standard input and output: a length in 4 bytes, then text. A question begins with a letter that says
what is asked, an answer to LARK with one that says how it went. It ends when its input is closed.
"""

from __future__ import annotations

import resource
import signal
import struct
import sys
from typing import IO

from llguidance import LLMatcher, LLParserLimits
from llguidance.gbnf_to_lark import any_to_lark

from scheduler.types import MAX_GRAMMAR_SYMBOLS, MAX_LEXER_STATES

CHECK, LARK = "c", "l"
DONE, FAULT = "+", "-"
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


def lark_of(text: str) -> str:
    """Lark as it is, GBNF translated. In here, since that takes quadratic time for some texts."""
    try:
        return DONE + any_to_lark(text)
    except Exception as error:  # the converter raises what it likes
        return FAULT + str(error)[:_MAX_PROBLEM_CHARS]


def answer(question: str) -> str:
    asked, text = question[:1], question[1:]
    return lark_of(text) if asked == LARK else problem_of(text)


def serve(source: IO[bytes], sink: IO[bytes], seconds: float) -> None:
    """The kernel keeps the time: what computes inside llguidance hears of nothing else."""
    while (question := read_frame(source)) is not None:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        signal.setitimer(signal.ITIMER_REAL, seconds * _WALL_PER_CPU)
        answered = answer(question)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        write_frame(sink, answered)


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
