"""Who is next where several tenants wait: virtual token counters (Sheng et al., "Fairness in Serving Large Language
Models", OSDI 2024).

A tenant's counter is what it was served: prompt tokens that were computed for it, and tokens that it generated, which
weigh more. The one with the least is next, within a priority; its own sequences in order of submission. One that comes
is lifted to the least of those that wait, so that nobody saves up service by keeping quiet.

An answer is expected to have the usual length when it is let in, and counts by its own when it leaves (the paper's
variant with predicted lengths). So counters change when sequences come and go, and no step has to look at them.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Container, Iterator
from itertools import chain, islice

from scheduler.types import Phase, Sequence

GENERATED_WEIGHT = 2  # of a generated token, where a computed one of a prompt weighs 1
MAX_TENANTS = 4096  # whose counters are kept while they have nothing here
Line = list[tuple[int, Sequence]]  # a heap by order of submission


class Shares:
    """What each tenant was served, and is expected to be by what it has in rows."""

    def __init__(self, expected: Callable[[Sequence], float]) -> None:
        """expected: how many tokens a sequence will generate from where it is."""
        self._expected = expected
        self._served: dict[int, int] = {}  # the tenant that came or was served last is the last
        self._pending: dict[int, int] = {}  # of answers that have not ended
        self._last = 0  # what the tenant was served that was let in last

    def of(self, tenant: int) -> int:
        """Its counter: the least is next."""
        return self._known(tenant) + self._pending.get(tenant, 0)

    def _known(self, tenant: int) -> int:
        """What one has been served that has been lifted. Of whom nothing is kept, the most that anybody was."""
        return self._served.get(tenant, self._last)

    def cost(self, seq: Sequence) -> int:
        """Of letting it in now. What was lost to a preemption is computed again for nothing."""
        return self._prompt(seq) + self._answer(seq)

    def _prompt(self, seq: Sequence) -> int:
        return len(seq.tokens) - seq.computed if seq.admitted is None else 0

    def _answer(self, seq: Sequence) -> int:
        return round(GENERATED_WEIGHT * self._expected(seq))

    def lift(self, tenant: int, least: int | None) -> None:
        """It waits from now on. least: the tenant that would be next. Its answers may turn out shorter: so what it was
        served is the measure, not what it is expected to be."""
        level = self._last if least is None else self._known(least)
        self._set(tenant, max(self._served.get(tenant, 0), level))

    def admit(self, seq: Sequence) -> None:
        served = self._known(seq.tenant)
        self._last = max(self._last, served)
        self._set(seq.tenant, served + self._prompt(seq))
        seq.pending, seq.generated_before = self._answer(seq), seq.num_generated
        self._pending[seq.tenant] = self._pending.get(seq.tenant, 0) + seq.pending

    def settle(self, seq: Sequence) -> None:
        """It leaves its row."""
        generated = GENERATED_WEIGHT * (seq.num_generated - seq.generated_before)
        self._set(seq.tenant, self._known(seq.tenant) + generated)
        # Nothing is kept of a tenant without any; so it may be none already, where prompts are only read.
        if pending := self._pending.pop(seq.tenant, 0) - seq.pending:
            self._pending[seq.tenant] = pending

    def _set(self, tenant: int, served: int) -> None:
        self._served.pop(tenant, None)
        self._served[tenant] = served
        if len(self._served) > MAX_TENANTS:
            del self._served[next(iter(self._served))]


class Lines:
    """Those of one priority that are ready: a line for each tenant, and one of those that come back after a preemption.
    These are first, after what there is of their own tenant that was submitted before them.

    Nothing is removed before it comes up: `waiting` says who is really here.
    """

    def __init__(self, shares: Shares, waiting: Container[Sequence]) -> None:
        self._shares = shares
        self._waiting = waiting
        self._back: Line = []
        self._lines: dict[int, Line] = {}
        self._next: list[tuple[int, int, int]] = []  # (counter, order of its first, tenant): one of each is true

    def push(self, seq: Sequence) -> None:
        if seq.admitted is not None:
            heapq.heappush(self._back, (seq.order, seq))
            return
        line = self._lines.get(seq.tenant)
        if line is None or self._clean(line, returned=False) is None:
            first = self._first()
            self._shares.lift(seq.tenant, None if first is None else first.tenant)
            line = self._lines[seq.tenant] = []
        heapq.heappush(line, (seq.order, seq))
        if line[0][1] is seq:
            self.touch(seq.tenant)

    def touch(self, tenant: int) -> None:
        """Its counter has changed, or its first."""
        line = self._lines.get(tenant)
        if line:
            heapq.heappush(self._next, (self._shares.of(tenant), line[0][0], tenant))
            if len(self._next) > 2 * len(self._lines) + 64:
                self._next = [(self._shares.of(each), line[0][0], each) for each, line in self._lines.items() if line]
                heapq.heapify(self._next)

    def head(self) -> Sequence | None:
        back = self._clean(self._back, returned=True)
        if back is None:
            return self._first()
        before = self._clean(self._lines.get(back.tenant, []), returned=False)
        return back if before is None else min(back, before, key=_order)

    def _first(self) -> Sequence | None:
        """Of the tenant with the least counter."""
        while self._next:
            counter, order, tenant = self._next[0]
            line = self._lines.get(tenant)
            seq = None if line is None else self._clean(line, returned=False)
            if seq is None:
                self._lines.pop(tenant, None)
                heapq.heappop(self._next)
            elif (counter, order) != (self._shares.of(tenant), seq.order):
                heapq.heapreplace(self._next, (self._shares.of(tenant), seq.order, tenant))
            else:
                return seq
        return None

    def _clean(self, line: Line, returned: bool) -> Sequence | None:
        """The first that is here."""
        while line and not self._is_here(line[0][1], returned):
            heapq.heappop(line)
        return line[0][1] if line else None

    def _is_here(self, seq: Sequence, returned: bool) -> bool:
        return seq in self._waiting and (seq.admitted is not None) == returned

    def compact(self) -> None:
        for line, returned in [(self._back, True), *((line, False) for line in self._lines.values())]:
            line[:] = [entry for entry in line if self._is_here(entry[1], returned)]
            heapq.heapify(line)
        self._lines = {tenant: line for tenant, line in self._lines.items() if line}

    @property
    def num_entries(self) -> int:
        return len(self._back) + sum(map(len, self._lines.values()))

    def in_order(self, most: int, later: dict[int, int]) -> list[Sequence]:
        """The first of them as they would be taken, if nothing came or ended. later: what tenants will have been served
        more by then; grows by these."""
        lines = {tenant: self._sorted(line, most, returned=False) for tenant, line in self._lines.items()}
        found: list[Sequence] = []
        for seq in self._sorted(self._back, most, returned=True):
            line = lines.get(seq.tenant, deque())
            while line and line[0].order < seq.order:
                found.append(line.popleft())
            found.append(seq)
        return list(islice(chain(found, self._by_turns(lines, later)), most))

    def _sorted(self, line: Line, most: int, returned: bool) -> deque[Sequence]:
        here = {seq for _, seq in line if self._is_here(seq, returned)}
        return deque(heapq.nsmallest(most, here, key=_order))

    def _by_turns(self, lines: dict[int, deque[Sequence]], later: dict[int, int]) -> Iterator[Sequence]:
        def turn(tenant: int) -> tuple[int, int, int]:
            return self._shares.of(tenant) + later.get(tenant, 0), lines[tenant][0].order, tenant

        turns = [turn(tenant) for tenant, line in lines.items() if line]
        heapq.heapify(turns)
        while turns:
            tenant = turns[0][2]
            seq = lines[tenant].popleft()
            later[tenant] = later.get(tenant, 0) + self._shares.cost(seq)
            yield seq
            if lines[tenant]:
                heapq.heapreplace(turns, turn(tenant))
            else:
                heapq.heappop(turns)


class Turns:
    """Who would be let in first come, first served: with each that is, the next of them has had its turn. Whoever still
    waits then, waits for fairness."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Sequence]] = []

    def push(self, seq: Sequence) -> None:
        heapq.heappush(self._heap, (seq.priority, seq.order, seq))

    def take(self, seq: Sequence) -> Sequence | None:
        """`seq` is let in for the first time. Whose turn it was, where that one goes on waiting."""
        while self._heap:
            first = heapq.heappop(self._heap)[2]
            if first is seq or first.admitted is not None:  # the latter were let in before their turn, which this is
                return None
            if first.phase is Phase.WAITING:
                return first
        return None

    def keep(self, waiting: Container[Sequence], most: int) -> None:
        """Of more than so many, those that wait; most 0: none."""
        if most == 0:
            self._heap.clear()
        elif len(self._heap) > most:
            self._heap = [entry for entry in self._heap if entry[2] in waiting]
            heapq.heapify(self._heap)


def _order(seq: Sequence) -> int:
    return seq.order
