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


def is_burst(waiting: int, step_tokens: int, already: bool) -> bool:
    """Whether `waiting` prompt tokens are a burst: more than a whole step takes, and then until half a step is left."""
    return waiting > (step_tokens // 2 if already else step_tokens)


def prompt_budget(budget: int, num_decodes: int, cap: int | None, burst: bool) -> int:
    """How many prompt tokens a step takes. Every decode waits for its step's prompts: with few prompts waiting, several
    short steps keep the inter-token latency even; a burst is through sooner in whole ones."""
    return budget if cap is None or burst or num_decodes == 0 else min(budget, cap)


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
