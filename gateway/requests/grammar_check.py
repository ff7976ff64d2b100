"""Grammars are read and tried in child processes that may be killed: no grammar harms the gateway.

Blocking, for any thread. What passes here compiles in the engine, which cannot kill its threads.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import signal
import subprocess
import sys
from collections import OrderedDict
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from threading import BoundedSemaphore, Lock

from gateway.requests.grammar_child import CHECK, DONE, LARK, read_frame, write_frame

CHILD_COMMAND = (sys.executable, "-m", "gateway.requests.grammar_child")
_END_S = 5.0

log = logging.getLogger("headrace.grammar")


@dataclass(slots=True, frozen=True)
class CheckLimits:
    seconds: float = 5.0  # of computing
    max_bytes: int = 1 << 30  # of address space
    num_children: int = 2
    max_cached: int = 4096  # answers, each of some kB at most


class TooCostly(Exception):
    """How, as the end of a sentence."""


class GrammarChecker:
    """Children start when they are needed and stay. Answers are kept, by digest."""

    def __init__(self, limits: CheckLimits | None = None) -> None:
        self._limits = limits or CheckLimits()
        self._slots = BoundedSemaphore(self._limits.num_children)
        self._lock = Lock()
        self._idle: list[_Child] = []
        self._known: OrderedDict[bytes, str] = OrderedDict()

    def problem(self, grammar: str) -> str:
        """Empty: none. Raises TooCostly."""
        digest = sha256(grammar.encode(errors="replace")).digest()
        with self._lock:
            if digest in self._known:
                self._known.move_to_end(digest)
                return self._known[digest]
        with self._slots:
            problem = self._ask(CHECK + grammar)
        with self._lock:
            self._known[digest] = problem
            while len(self._known) > self._limits.max_cached:
                self._known.popitem(last=False)
        return problem

    def lark(self, text: str) -> str:
        """Lark of Lark or GBNF. Raises ValueError, and TooCostly."""
        with self._slots:
            answer = self._ask(LARK + text)
        if not answer.startswith(DONE):
            raise ValueError(answer[1:])
        return answer[1:]

    def _ask(self, question: str) -> str:
        child = self._take()
        try:
            answer = child.ask(question)
        except BaseException:
            child.end()
            raise
        with self._lock:
            self._idle.append(child)
        return answer

    def _take(self) -> _Child:
        with self._lock:
            while self._idle:
                child = self._idle.pop()
                if child.is_alive():
                    return child
                child.end()
        return _Child(self._limits)

    def close(self) -> None:
        """A child that is asked something at this moment ends when it has answered."""
        with self._lock:
            while self._idle:
                self._idle.pop().end()


class _Child:
    def __init__(self, limits: CheckLimits) -> None:
        self._process = subprocess.Popen(
            [*CHILD_COMMAND, str(limits.seconds), str(limits.max_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a terminal's Ctrl-C is not for it
        )

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, question: str) -> str:
        """Raises TooCostly where the child ended over it: it keeps its own time."""
        assert self._process.stdin and self._process.stdout
        try:
            write_frame(self._process.stdin, question)
            answer = read_frame(self._process.stdout)
        except BrokenPipeError:
            answer = None
        if answer is None:
            raise TooCostly(self._cause())
        return answer

    def _cause(self) -> str:
        code = self._process.wait(_END_S)
        log.warning("a grammar ended the process that checked it (code %d)", code)
        late = code in (-signal.SIGPROF, -signal.SIGALRM)
        return "takes too long to check" if late else "takes too much memory to check"

    def end(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.kill()
        self._process.wait(_END_S)
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()


@cache
def shared_checker() -> GrammarChecker:
    """One for the whole process: its children are the costly part."""
    checker = GrammarChecker()
    atexit.register(checker.close)
    return checker
