"""The decisions of the scheduler as pure functions of numbers and sequences. None of them changes anything."""

from __future__ import annotations

from collections.abc import Iterable

from scheduler.types import Sequence


def blocks_for(num_tokens: int, block_size: int) -> int:
    return -(-num_tokens // block_size)


def chunk_size(start: int, remaining: int, limit: int, block_size: int) -> int:
    """How many of the `remaining` prompt tokens from `start` on to compute, at most `limit`.

    A chunk that does not finish the prompt ends on a block boundary, if `limit` reaches one.
    """
    if remaining <= limit:
        return remaining
    end = (start + limit) // block_size * block_size
    return end - start if end > start else limit


def has_room(num_new: int, num_free_hits: int, num_free: int, reserve: int) -> bool:
    """Whether a sequence may enter that needs `num_new` blocks beside its prefix hits.

    Hits that nobody holds count as free until they are acquired.
    """
    return num_new + num_free_hits + reserve <= num_free


def victim(running: Iterable[Sequence], spare: int | None) -> Sequence:
    """Who gives up its blocks: the lowest priority, there the least computed work, there the youngest.

    `spare`, the id of the last victim, is taken only if it is alone in its priority: with little computed since its
    return, it would otherwise be chosen again and again.
    """
    return max(running, key=lambda seq: (seq.priority, seq.id != spare, -seq.computed, seq.order))
