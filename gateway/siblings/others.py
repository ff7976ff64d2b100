"""The other gateways, as what answers a request sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from gateway.dashboard.elsewhere import Elsewhere


class Others(Protocol):
    """Every wait is short: a gateway that does not answer is left out, and what it told last counts."""

    async def ask_for_series(self) -> None:
        """Metrics then knows them."""

    async def live(self) -> list[Elsewhere]:
        """What they add to the live page."""

    async def timeline(self, request_id: str, key: str | None) -> bytes:
        """As JSON; empty: nobody knows of it."""
