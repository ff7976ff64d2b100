"""The executor of rank 0: what it is asked it tells the other ranks first, then does its own part."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol, TypeVar

from engine.flights import Executor
from engine.grammar import Matchers
from engine.parallel.messages import Drawn, Finish, Launch, without_host
from engine.parallel.ranks import Loss, Ranks
from scheduler.plan import StepPlan, StepResult

log = logging.getLogger("headrace.engine")
T = TypeVar("T")


class Shared(Executor, Protocol):
    """An executor that several ranks run side by side."""

    @property
    def drawn(self) -> Drawn:
        """By the host, in the step that was finished last: what the other ranks cannot know."""

    def correct(self, drawn: Drawn) -> None:
        """On another rank, before the next launch."""


class Leader:
    """Any step that raises ends the group: its ranks would no longer do the same."""

    def __init__(self, runner: Shared, ranks: Ranks) -> None:
        self._runner = runner
        self._ranks = ranks
        self._drawn: Drawn = []

    @property
    def matchers(self) -> Matchers:
        return self._runner.matchers

    @property
    def ahead(self) -> int:
        return self._runner.ahead

    def launch(self, plan: StepPlan) -> None:
        drawn, self._drawn = self._drawn, []
        self._ranks.send(Launch(without_host(plan), drawn))
        self._or_end(lambda: self._runner.launch(plan))

    def finish(self) -> StepResult:
        self._ranks.send(Finish())
        result = self._or_end(self._runner.finish)
        self._drawn = self._runner.drawn
        return result

    def _or_end(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except Exception as error:
            log.exception("a step failed on rank 0, and with it the group")
            self._ranks.lose(Loss("internal", f"a step failed on rank 0: {error!r}"))
            raise
