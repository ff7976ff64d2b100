"""Plans that are launched and not finished: the pipeline between the step loop and what executes its plans."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from engine.grammar import Matchers
from scheduler.plan import StepPlan, StepResult

log = logging.getLogger("headrace.engine")


class Executor(Protocol):
    """Runs plans in the order of their launch."""

    @property
    def matchers(self) -> Matchers: ...

    @property
    def ahead(self) -> int:
        """How many plans may be launched now beside the oldest unfinished one."""

    def launch(self, plan: StepPlan) -> None:
        """Begins the plan behind those launched before it, and waits for none of them. If it raises, the plan is not
        to be finished; its releases are done nevertheless."""

    def finish(self) -> StepResult:
        """Waits for the oldest launched plan. It is finished also where this raises, and those behind it may be."""


@dataclass(slots=True, frozen=True)
class _Flight:
    plan: StepPlan
    started: float
    launched: bool


@dataclass(slots=True, frozen=True)
class Landed:
    plan: StepPlan
    result: StepResult | None  # None: it raised
    seconds: float  # since its launch, or the end of the plan before it: no time counts for two plans


class Flights:
    """In the order of launch. What raises is logged here, and told when it is the plan's turn to be finished."""

    def __init__(self, runner: Executor, clock: Callable[[], float]) -> None:
        self._runner = runner
        self._clock = clock
        self._flights: deque[_Flight] = deque()
        self._last_landed = float("-inf")

    def __len__(self) -> int:
        return len(self._flights)

    @property
    def oldest(self) -> StepPlan:
        return self._flights[0].plan

    @property
    def has_room(self) -> bool:
        """Not behind a plan that could not be launched: the runner may lack the rows that it admitted."""
        flights = self._flights
        return len(flights) <= self._runner.ahead and not (flights and not flights[-1].launched)

    def launch(self, plan: StepPlan) -> None:
        started = self._clock()
        try:
            self._runner.launch(plan)
            launched = True
        except Exception:  # whatever it is, those who wait for this step are told, and it is counted
            self._log(plan)
            launched = False
        self._flights.append(_Flight(plan, started, launched))

    def land(self) -> Landed:
        """Finishes the oldest."""
        flight = self._flights.popleft()
        result = self._finish(flight.plan) if flight.launched else None
        began = max(flight.started, self._last_landed)
        self._last_landed = self._clock()
        return Landed(flight.plan, result, self._last_landed - began)

    def _finish(self, plan: StepPlan) -> StepResult | None:
        try:
            return self._runner.finish()
        except Exception:  # as above
            self._log(plan)
            return None

    def _log(self, plan: StepPlan) -> None:
        log.exception("step %d failed; its %d sequences end with an error", plan.step, len(plan.works))
