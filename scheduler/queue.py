"""Sequences that hold no slot and no blocks: waiting for admission, or parked behind their leader."""

from __future__ import annotations

import heapq
from itertools import islice

from scheduler.types import Phase, Sequence


class WaitingQueue:
    """First come, first served within a priority, by order of submission.

    A preempted sequence therefore returns to the head of its priority: all that wait there came after it.
    Removal is lazy: heaps keep an entry until it comes up, `_tokens` says who is really here.
    """

    def __init__(self) -> None:
        self.num_tokens = 0
        self.num_parked = 0
        self._tokens: dict[Sequence, int] = {}  # as counted when it came
        self._ready: list[tuple[int, int, Sequence]] = []
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
        heapq.heappush(self._ready, (seq.priority, seq.order, seq))

    def park(self, seq: Sequence, leader_id: int) -> None:
        """`seq` becomes ready when `unpark(leader_id)` is called."""
        seq.leader = leader_id
        self.num_parked += 1
        self._enter(seq)
        self._parked.setdefault(leader_id, []).append(seq)

    def _enter(self, seq: Sequence) -> None:
        self._tokens[seq] = len(seq.tokens)
        self.num_tokens += len(seq.tokens)
        if seq.deadline is not None and seq.admitted is None:
            heapq.heappush(self._deadlines, (seq.deadline, seq.order, seq))

    def parked(self, leader_id: int) -> list[Sequence]:
        return self._parked.get(leader_id, [])

    def unpark(self, leader_id: int) -> None:
        for seq in self._parked.pop(leader_id, ()):
            seq.leader = None
            self.num_parked -= 1
            heapq.heappush(self._ready, (seq.priority, seq.order, seq))

    def head(self) -> Sequence | None:
        ready = self._ready
        while ready and ready[0][2] not in self._tokens:
            heapq.heappop(ready)
        return ready[0][2] if ready else None

    def in_order(self, most: int) -> list[Sequence]:
        """The first of those that wait: the ready ones as they will be taken, then the parked."""
        ready = {entry for entry in self._ready if entry[2] in self._tokens and entry[2].leader is None}
        first = [entry[2] for entry in heapq.nsmallest(most, ready)]
        parked = (seq for seqs in self._parked.values() for seq in seqs)
        return first + list(islice(parked, most - len(first)))

    def remove(self, seq: Sequence) -> None:
        self.num_tokens -= self._tokens.pop(seq)
        if seq.leader is not None:
            self._parked[seq.leader].remove(seq)  # at most the choices of one request
            seq.leader = None
            self.num_parked -= 1
        if len(self._ready) > 2 * len(self._tokens) + 64:
            self._ready = [entry for entry in self._ready if entry[2] in self._tokens]
            heapq.heapify(self._ready)

    def expired(self, now: float) -> list[Sequence]:
        """Those whose deadline has passed before their first admission. They stay until removed."""
        late: list[Sequence] = []
        deadlines = self._deadlines
        while deadlines and deadlines[0][0] <= now:
            seq = heapq.heappop(deadlines)[2]
            if seq in self._tokens and seq.admitted is None and seq.deadline is not None:
                late.append(seq)
        return late

    def check(self) -> None:
        if self.num_tokens != sum(self._tokens.values()):
            raise RuntimeError(f"the queue counts {self.num_tokens} tokens, holds {sum(self._tokens.values())}")
        parked = [seq for seqs in self._parked.values() for seq in seqs]
        if self.num_parked != len(parked) or any(seq.leader is None or seq not in self._tokens for seq in parked):
            raise RuntimeError(f"the queue counts {self.num_parked} parked sequences, holds {len(parked)}")
        if any(seq.phase is not Phase.WAITING or seq.blocks or seq.computed or seq.slot >= 0 for seq in self._tokens):
            raise RuntimeError("a sequence in the queue is not waiting, or holds something")
