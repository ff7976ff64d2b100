"""What one event of the feed says, as JSON: the page and `headrace top` read it. No text of any request is in it.

Seconds end in _s, milliseconds in _ms. null: nobody knows, or nothing happened of late.
"""

from __future__ import annotations

from typing import Literal

import msgspec


class Lately(msgspec.Struct, frozen=True):
    """Of the last seconds."""

    tokens_per_s: float | None = None
    prompt_tokens_per_s: float | None = None
    ttft_p50_ms: float | None = None
    ttft_p99_ms: float | None = None
    itl_p50_ms: float | None = None
    itl_p99_ms: float | None = None


class RowView(msgspec.Struct, frozen=True):
    """A sequence that is computed."""

    id: str | None  # of its request; null: another gateway's, or one that is about to leave
    choice: int
    endpoint: str | None
    slot: int
    phase: Literal["prefill", "decode"]
    prompt_tokens: int
    cached_tokens: int
    computed_tokens: int
    generated_tokens: int
    max_tokens: int
    blocks: int
    priority: int
    preemptions: int
    age_s: float


class QueueView(msgspec.Struct, frozen=True):
    """A sequence that waits to be computed."""

    id: str | None
    choice: int
    endpoint: str | None
    tokens: int
    priority: int
    preemptions: int
    waits_for_choice: bool
    waited_s: float
    predicted_s: float | None


class BlocksView(msgspec.Struct, frozen=True):
    """Cells of so many blocks, and runs of cells that are alike."""

    total: int
    used: int
    cached: int
    per_cell: int
    block_size: int  # tokens
    runs: list[tuple[int, int, int]]  # cells, blocks held in each, blocks cached in each


class EngineView(msgspec.Struct, frozen=True):
    name: str
    up: bool
    device: str
    max_rows: int
    running: int = 0
    waiting: int = 0
    compiling: int = 0
    waits_for: str = "step"
    draining: bool = False  # it is given no new work
    steps: int = 0
    preemptions: int = 0
    prefix_hits: int = 0
    prefix_queries: int = 0
    seen_s: float | None = None  # since the engine told what follows; null: it has not yet
    rows: list[RowView] = []
    queue: list[QueueView] = []
    blocks: BlocksView | None = None


class EndedView(msgspec.Struct, frozen=True):
    """A request that has ended."""

    id: str
    endpoint: str
    outcome: str | None
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    ttft_ms: float | None
    total_ms: float
    ago_s: float


class Event(msgspec.Struct, frozen=True):
    at: float  # Unix time
    version: str
    model: str
    requests: int  # that are being answered
    streams: int
    lately: Lately
    engines: list[EngineView]
    ended: list[EndedView]  # the newest first
