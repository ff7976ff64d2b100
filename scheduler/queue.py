"""Sequences that hold no slot and no blocks: waiting for admission, or parked behind their leader."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import islice

from scheduler.fairness import Lines, Shares, Turns
from scheduler.types import Phase, Sequence


def _as_many_as_it_may(seq: Sequence) -> float:
    return seq.params.max_tokens - seq.num_generated


class WaitingQueue:
    """Within a priority, tenants by turns (scheduler.fairness), each first come, first served, by order of submission.

    A preempted sequence therefore returns to the head of its priority: all that wait there came after it, or for
    others' sake. Removal is lazy: heaps keep an entry until it comes up, `_tokens` says who is really here.
    """

    def __init__(self, expected: Callable[[Sequence], float] = _as_many_as_it_may) -> None:
        """expected: how many tokens a sequence will generate from where it is."""
        self.num_tokens = 0
        self.num_parked = 0
        self.num_overtaken = 0  # others were let in in their turn
        self._tokens: dict[Sequence, int] = {}  # as counted when it came
        self._tokens_of: dict[int, int] = {}  # by tenant
        self._shares = Shares(expected)
        self._turns = Turns()
        self._ready: dict[int, Lines] = {}  # by priority
        self._priorities: list[int] = []  # a heap of the same
        self._num_entries = 0  # in all lines, at most
        self._parked: dict[int, list[Sequence]] = {}  # by leader id
        self._deadlines: list[tuple[float, int, Sequence]] = []

    def __len__(self) -> int:
        return len(self._tokens)

    def __contains__(self, seq: Sequence) -> bool:
        return seq in self._tokens

    @property
    def num_ready(self) -> int:
        return len(self._tokens) - self.num_parked

    def push(self, seq: Sequence) -> None:
        self._enter(seq)
        self._line_up(seq)

    def _line_up(self, seq: Sequence) -> None:
        lines = self._ready.get(seq.priority)
        if lines is None:
            lines = self._ready[seq.priority] = Lines(self._shares, self._tokens)
            heapq.heappush(self._priorities, seq.priority)
        lines.push(seq)
        self._num_entries += 1
        if seq.admitted is None:
            self._turns.push(seq)

    def park(self, seq: Sequence, leader_id: int) -> None:
        """`seq` becomes ready when `unpark(leader_id)` is called."""
        seq.leader = leader_id
        self.num_parked += 1
        self._enter(seq)
        self._parked.setdefault(leader_id, []).append(seq)

    def _enter(self, seq: Sequence) -> None:
        self._tokens[seq] = len(seq.tokens)
        self.num_tokens += len(seq.tokens)
        self._tokens_of[seq.tenant] = self._tokens_of.get(seq.tenant, 0) + len(seq.tokens)
        if seq.deadline is not None and seq.admitted is None:
            heapq.heappush(self._deadlines, (seq.deadline, seq.order, seq))

    def parked(self, leader_id: int) -> list[Sequence]:
        return self._parked.get(leader_id, [])

    def unpark(self, leader_id: int) -> None:
        for seq in self._parked.pop(leader_id, ()):
            seq.leader = None
            self.num_parked -= 1
            self._line_up(seq)

    def head(self) -> Sequence | None:
        while self._priorities:
            seq = self._ready[self._priorities[0]].head()
            if seq is not None:
                return seq
            del self._ready[heapq.heappop(self._priorities)]
        return None

    def in_order(self, most: int) -> list[Sequence]:
        """The first of those that wait: the ready ones as they will be taken, then the parked."""
        first: list[Sequence] = []
        later: dict[int, int] = {}
        for priority in sorted(self._ready):
            first += self._ready[priority].in_order(most - len(first), later)
        parked = (seq for seqs in self._parked.values() for seq in seqs)
        return first + list(islice(parked, most - len(first)))

    def tokens_before(self, tenant: int) -> int:
        """Of prompts, until all are read that it has here: its own, and of each other tenant no more than those."""
        return min(self.num_tokens, len(self._tokens_of) * self._tokens_of.get(tenant, 0))

    def take(self, seq: Sequence) -> Sequence | None:
        """The head is let in, and has its blocks. Returns who is overtaken by it: its turn it was, and it goes on
        waiting."""
        self.remove(seq)
        overtaken = self._turns.take(seq) if seq.admitted is None else None
        self.num_overtaken += overtaken is not None
        self._shares.admit(seq)
        self._touch(seq.tenant)
        return overtaken

    def settle(self, seq: Sequence) -> None:
        """One that was taken leaves its row."""
        self._shares.settle(seq)
        self._touch(seq.tenant)

    def _touch(self, tenant: int) -> None:
        for lines in self._ready.values():
            lines.touch(tenant)

    def remove(self, seq: Sequence) -> None:
        num_tokens = self._tokens.pop(seq)
        self.num_tokens -= num_tokens
        self._tokens_of[seq.tenant] -= num_tokens
        if not self._tokens_of[seq.tenant]:
            del self._tokens_of[seq.tenant]
        self.num_overtaken -= seq.overtaken_at is not None and seq.admitted is None
        if seq.leader is not None:
            self._parked[seq.leader].remove(seq)  # at most the choices of one request
            seq.leader = None
            self.num_parked -= 1
        most = 2 * len(self._tokens) + 64
        self._turns.keep(self._tokens, most if self._tokens else 0)
        if len(self._deadlines) > most:  # each holds a whole sequence
            self._deadlines = [entry for entry in self._deadlines if self._may_expire(entry[2])]
            heapq.heapify(self._deadlines)
        if self._num_entries > most:
            for lines in self._ready.values():
                lines.compact()
            self._num_entries = sum(lines.num_entries for lines in self._ready.values())

    def expired(self, now: float) -> list[Sequence]:
        """Those whose deadline has passed before their first admission. They stay until removed."""
        late: list[Sequence] = []
        deadlines = self._deadlines
        while deadlines and deadlines[0][0] <= now:
            seq = heapq.heappop(deadlines)[2]
            if self._may_expire(seq):
                late.append(seq)
        return late

    def _may_expire(self, seq: Sequence) -> bool:
        return seq in self._tokens and seq.admitted is None and seq.deadline is not None

    def check(self) -> None:
        if self.num_tokens != sum(self._tokens.values()):
            raise RuntimeError(f"the queue counts {self.num_tokens} tokens, holds {sum(self._tokens.values())}")
        if sum(self._tokens_of.values()) != self.num_tokens:
            raise RuntimeError(f"the queue counts {self.num_tokens} tokens, of tenants {self._tokens_of}")
        num_overtaken = sum(seq.overtaken_at is not None and seq.admitted is None for seq in self._tokens)
        if self.num_overtaken != num_overtaken:
            raise RuntimeError(f"the queue counts {self.num_overtaken} overtaken sequences, holds {num_overtaken}")
        parked = [seq for seqs in self._parked.values() for seq in seqs]
        if self.num_parked != len(parked) or any(seq.leader is None or seq not in self._tokens for seq in parked):
            raise RuntimeError(f"the queue counts {self.num_parked} parked sequences, holds {len(parked)}")
        if any(seq.phase is not Phase.WAITING or seq.blocks or seq.computed or seq.slot >= 0 for seq in self._tokens):
            raise RuntimeError("a sequence in the queue is not waiting, or holds something")
