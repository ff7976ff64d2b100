"""Which request each sequence in the engine belongs to, and the requests that ended last. For who looks on; nothing is
decided by it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.http.exchange import Exchange

MAX_ENDED = 20


@dataclass(frozen=True, slots=True)
class Choice:
    """A sequence as people know it."""

    exchange: Exchange
    index: int  # of the request's choices, over all of its prompts


@dataclass(frozen=True, slots=True)
class Ended:
    exchange: Exchange  # which may come to know its outcome a moment later
    at: float


class Live:
    """One per gateway process, used on its event loop."""

    def __init__(self) -> None:
        self._open: dict[int, tuple[list[int], Exchange]] = {}  # by their first id
        self._ended: deque[Ended] = deque(maxlen=MAX_ENDED)

    def enter(self, seq_ids: list[int], exchange: Exchange) -> None:
        self._open[seq_ids[0]] = seq_ids, exchange

    def leave(self, seq_ids: list[int], now: float) -> None:
        """Nothing, where they have left before."""
        if (known := self._open.pop(seq_ids[0], None)) is not None:
            self._ended.append(Ended(known[1], now))

    @property
    def num_requests(self) -> int:
        return len(self._open)

    @property
    def num_sequences(self) -> int:
        return sum(len(seq_ids) for seq_ids, _ in self._open.values())

    def choices(self) -> dict[int, Choice]:
        """By sequence."""
        return {
            seq_id: Choice(exchange, index)
            for seq_ids, exchange in self._open.values()
            for index, seq_id in enumerate(seq_ids)
        }

    def ended(self) -> list[Ended]:
        """The newest first."""
        return list(reversed(self._ended))
