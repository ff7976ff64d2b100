"""How things stand, for people who look: rows, the queue with its predicted waits, the map of blocks. Reads only."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby, islice

from scheduler.blocks import BlockPool
from scheduler.protocol import (
    MAX_SNAPSHOT_CELLS,
    MAX_SNAPSHOT_ROWS,
    BlockMap,
    EngineStats,
    Queued,
    Row,
    Snapshot,
)
from scheduler.queue import WaitingQueue
from scheduler.stats import AnswerLength, Pace
from scheduler.types import Sequence


@dataclass(slots=True, frozen=True)
class Scene:
    """What the scheduler shows of itself."""

    running: Mapping[int, Sequence]
    queue: WaitingQueue
    pool: BlockPool
    free_slots: int
    pace: Pace
    answers: AnswerLength

    def snapshot(self, stats: EngineStats, now: float) -> Snapshot:
        rows = [row_of(seq, now) for seq in islice(self.running.values(), MAX_SNAPSHOT_ROWS)]
        waiting = self.queue.in_order(MAX_SNAPSHOT_ROWS)
        waits = self._waits(waiting)
        queue = [queued_of(seq, now, next(waits) if seq.leader is None else None) for seq in waiting]
        return Snapshot(rows, queue, block_map(self.pool), stats)

    def _waits(self, waiting: list[Sequence]) -> Iterator[float | None]:
        """Seconds until each that is ready is admitted, at the pace of late.

        All rows advance with each step, so after `num_steps` those have ended that had fewer left. Each gives its slot
        to the next of the queue, whose prompt is read first. Blocks may run out before slots do: then it takes longer.
        """
        running = self.running.values()
        ends = [self._left(seq) for seq in running]  # the steps after which rows end
        heapq.heapify(ends)
        free, num_steps = self.free_slots, 0.0
        num_tokens = sum(len(seq.tokens) - seq.computed for seq in running if in_prompt(seq))
        for seq in waiting:
            if seq.leader is not None:
                return
            if free > 0:
                free -= 1
            elif ends:
                num_steps = heapq.heappop(ends)
            yield self.pace.seconds(num_tokens, num_steps)
            num_tokens += len(seq.tokens)
            heapq.heappush(ends, num_steps + self._left(seq))

    def _left(self, seq: Sequence) -> float:
        return self.answers.left(seq.num_generated, seq.max_len - len(seq.tokens))


def in_prompt(seq: Sequence) -> bool:
    """Or else it computes its newest token only."""
    return len(seq.tokens) + seq.in_flight - seq.computed > 1


def row_of(seq: Sequence, now: float) -> Row:
    return Row(
        seq.id,
        seq.slot,
        "prefill" if seq.num_generated == 0 or in_prompt(seq) else "decode",
        seq.prompt_len,
        seq.computed,
        seq.num_generated,
        seq.max_len - seq.prompt_len,
        seq.cached_at_admit,
        len(seq.blocks),
        seq.priority,
        seq.preemptions,
        now - seq.arrived,
    )


def queued_of(seq: Sequence, now: float, predicted_s: float | None) -> Queued:
    return Queued(
        seq.id,
        len(seq.tokens),
        seq.priority,
        seq.preemptions,
        seq.leader is not None,
        now - seq.arrived,
        predicted_s,
    )


def block_map(pool: BlockPool) -> BlockMap:
    size = -(-pool.usable // MAX_SNAPSHOT_CELLS)
    runs = [(len(list(alike)), *cell) for cell, alike in groupby(pool.occupancy(size))]
    return BlockMap(pool.usable, size, runs)
