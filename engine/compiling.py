"""Submissions whose grammar is being compiled: off the step loop, each grammar once, nobody waiting past a limit."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from engine.grammar import Matcher
from scheduler.protocol import Vocabulary
from scheduler.types import Rejected, Sequence

log = logging.getLogger("headrace.engine")

Compile = Callable[[str], Matcher]  # raises Rejected: bad_grammar


@dataclass(slots=True, frozen=True)
class CompileLimits:
    seconds: float = 10.0  # from submission
    max_pending: int = 1024  # submissions; one more is refused
    max_cached: int = 256  # compiled grammars
    num_threads: int = 2


@dataclass(slots=True, eq=False)
class Compilation:
    future: Future[Matcher]
    began: float | None = None  # on a thread


@dataclass(slots=True, eq=False)
class Pending:
    """The sequences of one submission."""

    connection: int
    grammar: str
    seqs: list[Sequence]
    compilation: Compilation
    cancelled: set[int] = field(default_factory=set)
    late: Rejected | None = None  # why it has not waited any longer

    def result(self) -> Matcher:
        """Raises Rejected: bad_grammar; if it is not compiled yet, grammar_timeout, or queue_full where it had too
        little time because of others."""
        future = self.compilation.future
        if not future.done() or future.cancelled():
            raise self.late or Rejected("grammar_timeout", "the grammar takes too long to compile")
        error = future.exception()
        if error is None or isinstance(error, Rejected):
            return future.result()
        log.error("a grammar made the compiler fail: %r", error)
        raise Rejected("bad_grammar", f"the grammar could not be compiled: {error}")


class CompileQueue:
    """For the step loop's thread, but for the compiling itself. What has been compiled is kept, failures too."""

    def __init__(
        self,
        prepare: Callable[[Vocabulary], Compile],
        wake: Callable[[], None],
        clock: Callable[[], float],
        limits: CompileLimits | None = None,
    ) -> None:
        """prepare: run once, on a thread, when the vocabulary is known; may raise ValueError. wake: from any thread,
        when `take` has something new."""
        self._prepare = prepare
        self._wake = wake
        self._clock = clock
        self._limits = limits or CompileLimits()
        self._threads = ThreadPoolExecutor(self._limits.num_threads, thread_name_prefix="grammar")
        self._compile: Future[Compile] | None = None
        self._cache: OrderedDict[str, Compilation] = OrderedDict()
        self._pending: list[Pending] = []

    @property
    def num_waiting(self) -> int:
        """Sequences."""
        return sum(len(one.seqs) for one in self._pending)

    def learn(self, vocabulary: Vocabulary) -> None:
        """The first counts; another gateway of the same model has nothing else to say."""
        if self._compile is None:
            self._compile = self._threads.submit(self._prepare, vocabulary)

    def add(self, connection: int, grammar: str, seqs: list[Sequence]) -> None:
        """`take` gives them back, unless they are cancelled. Raises Rejected: bad_grammar, queue_full."""
        if self._compile is None:
            raise Rejected("bad_grammar", "the engine was not told its vocabulary, which grammars need")
        if len(self._pending) >= self._limits.max_pending:
            message = f"{len(self._pending)} requests wait for their grammar already"
            raise Rejected("queue_full", message, self._limits.seconds)
        self._pending.append(Pending(connection, grammar, seqs, self._request(grammar, self._compile)))

    def _request(self, grammar: str, compile: Future[Compile]) -> Compilation:
        known = self._cache.get(grammar)
        if known is not None:
            self._cache.move_to_end(grammar)
            return known
        compilation = Compilation(Future())
        compilation.future = self._threads.submit(self._compiled, compilation, compile, grammar)
        compilation.future.add_done_callback(lambda _: self._wake())
        self._cache[grammar] = compilation
        if len(self._cache) > self._limits.max_cached:
            self._cache.popitem(last=False)
        return compilation

    def take(self) -> list[Pending]:
        """Those whose grammar is compiled, cannot be, or takes too long."""
        now = self._clock()
        oldest = now - self._limits.seconds
        ended = [one for one in self._pending if one.compilation.future.done() or one.seqs[0].arrived <= oldest]
        for one in ended:
            one.late = self._lateness(one.compilation.began, now)
            self._remove(one)
        return ended

    def _lateness(self, began: float | None, now: float) -> Rejected:
        """The grammar's own, or that of those before it, which kept it from its share of the time."""
        if began is not None and now - began >= self._limits.seconds / 2:
            return Rejected("grammar_timeout", "the grammar takes too long to compile")
        message = "other requests' grammars are being compiled, and there was no time for this one"
        return Rejected("queue_full", message, self._limits.seconds)

    def cancel(self, seq_ids: Iterable[int]) -> None:
        gone = set(seq_ids)
        for one in list(self._pending):
            one.cancelled.update(seq.id for seq in one.seqs if seq.id in gone)
            if len(one.cancelled) == len(one.seqs):
                self._remove(one)

    def _remove(self, one: Pending) -> None:
        """What nobody waits for any more is not begun; once begun, it will be known to those who ask again."""
        self._pending.remove(one)
        compilation = one.compilation
        wanted = any(other.compilation is compilation for other in self._pending)
        if not wanted and compilation.future.cancel() and self._cache.get(one.grammar) is compilation:
            del self._cache[one.grammar]

    def _compiled(self, compilation: Compilation, compile: Future[Compile], grammar: str) -> Matcher:
        try:
            ready = compile.result()  # its thread has begun before this one
        except ValueError as error:
            raise Rejected("bad_grammar", f"this engine cannot follow grammars: {error}") from None
        compilation.began = self._clock()
        return ready(grammar)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
