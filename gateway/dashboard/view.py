"""Joins what the engine tells of its sequences with what the gateway knows of their requests."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.answers.live import Choice, Ended
from gateway.dashboard.types import BlocksView, EndedView, EngineView, QueueView, RowView
from gateway.engine_metrics import NO_STATS
from scheduler.protocol import EngineStats, Queued, Ready, Row, Snapshot

Choices = Mapping[int, Choice]


def engine_view(
    name: str, ready: Ready | None, stats: EngineStats | None, seen: tuple[Snapshot, float] | None, choices: Choices
) -> EngineView:
    """seen: a snapshot and its age in seconds."""
    if ready is None:
        return EngineView(name, up=False, device="", max_rows=0)
    snapshot, age_s = seen or (None, None)
    counts = (snapshot.stats if snapshot else stats) or NO_STATS
    return EngineView(
        name,
        up=True,
        device=ready.device,
        max_rows=ready.max_seqs,
        running=counts.running,
        waiting=counts.waiting,
        compiling=counts.compiling,
        waits_for=counts.waits_for,
        steps=counts.steps,
        preemptions=counts.preemptions,
        prefix_hits=counts.prefix_hits,
        prefix_queries=counts.prefix_queries,
        seen_s=None if age_s is None else round(age_s, 3),
        rows=[row_view(row, choices) for row in snapshot.rows] if snapshot else [],
        queue=[queue_view(queued, choices) for queued in snapshot.queue] if snapshot else [],
        blocks=blocks_view(snapshot, ready.block_size) if snapshot else None,
    )


def _names(seq_id: int | None, choices: Choices) -> tuple[str | None, int, str | None]:
    choice = None if seq_id is None else choices.get(seq_id)
    return (None, 0, None) if choice is None else (choice.exchange.request_id, choice.index, choice.exchange.endpoint)


def row_view(row: Row, choices: Choices) -> RowView:
    return RowView(
        *_names(row.seq_id, choices),
        row.slot,
        row.phase,
        row.prompt_len,
        row.cached_tokens,
        row.computed,
        row.generated,
        row.max_tokens,
        row.num_blocks,
        row.priority,
        row.preemptions,
        round(row.age_s, 2),
    )


def queue_view(queued: Queued, choices: Choices) -> QueueView:
    return QueueView(
        *_names(queued.seq_id, choices),
        queued.num_tokens,
        queued.priority,
        queued.preemptions,
        queued.parked,
        round(queued.waited_s, 2),
        None if queued.predicted_s is None else round(queued.predicted_s, 2),
    )


def blocks_view(snapshot: Snapshot, block_size: int) -> BlocksView:
    stats, blocks = snapshot.stats, snapshot.blocks
    return BlocksView(
        blocks.num_blocks, stats.blocks_used, stats.blocks_cached, blocks.blocks_per_cell, block_size, blocks.runs
    )


def ended_view(ended: Ended, now: float) -> EndedView:
    exchange = ended.exchange
    return EndedView(
        exchange.request_id,
        exchange.endpoint,
        exchange.outcome or None,
        exchange.prompt_tokens,
        exchange.cached_tokens,
        exchange.generated_tokens,
        None if exchange.ttft_s is None else round(1000 * exchange.ttft_s, 1),
        round(1000 * (ended.at - exchange.started), 1),
        round(now - ended.at, 1),
    )
