"""What other gateways of one server add to the live page: whose rows are theirs, and their counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from gateway.answers.live import MAX_ENDED, Live
from gateway.dashboard.types import EndedView, RowView
from gateway.dashboard.view import ended_view
from gateway.metrics import Figures, Metrics
from scheduler.protocol import Snapshot


class Named(msgspec.Struct, frozen=True, array_like=True):
    """The request of a row of an engine's batch."""

    engine: int
    slot: int
    id: str
    choice: int
    endpoint: str


class Elsewhere(msgspec.Struct, frozen=True, array_like=True):
    """Of one gateway."""

    requests: int
    streams: int
    figures: Figures
    rows: list[Named]
    ended: list[EndedView]


def elsewhere_of(live: Live, metrics: Metrics, seen: Sequence[Snapshot | None], now: float) -> Elsewhere:
    """For the first gateway. seen: each engine's last snapshot, in which only our sequences have ids."""
    choices = live.choices()
    rows = [
        Named(engine, row.slot, choice.exchange.request_id, choice.index, choice.exchange.endpoint)
        for engine, snapshot in enumerate(seen)
        for row in (snapshot.rows if snapshot else [])
        if row.seq_id is not None and (choice := choices.get(row.seq_id)) is not None
    ]
    ended = [ended_view(each, now) for each in live.ended()]
    return Elsewhere(live.num_requests, metrics.num_streams, metrics.figures(), rows, ended)


def named(rows: Sequence[RowView], others: Sequence[Elsewhere], engine: int) -> list[RowView]:
    """Two snapshots of an engine need not be of one moment: what has no name in ours has theirs, by its slot."""
    by_slot: Mapping[int, Named] = {each.slot: each for other in others for each in other.rows if each.engine == engine}
    return [_named(row, by_slot.get(row.slot)) if row.id is None else row for row in rows]


def _named(row: RowView, name: Named | None) -> RowView:
    if name is None:
        return row
    return msgspec.structs.replace(row, id=name.id, choice=name.choice, endpoint=name.endpoint)


def added(figures: Figures, others: Sequence[Elsewhere]) -> Figures:
    all_of = [figures, *(other.figures for other in others)]
    return Figures(
        tuple(map(sum, zip(*(each.ttft for each in all_of), strict=True))),
        tuple(map(sum, zip(*(each.inter_token for each in all_of), strict=True))),
        sum(each.prompt_tokens for each in all_of),
        sum(each.generation_tokens for each in all_of),
    )


def newest(ended: Sequence[EndedView], others: Sequence[Elsewhere]) -> list[EndedView]:
    """Of all, the newest first."""
    found = [*ended, *(each for other in others for each in other.ended)]
    return sorted(found, key=lambda each: each.ago_s)[:MAX_ENDED]
