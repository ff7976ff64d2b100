"""truncation: auto. The oldest turns are left out, as few as it takes; system messages and the latest turn stay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from gateway.errors import ApiError
from gateway.responses.turns import Sourced

T = TypeVar("T")
Plan = Callable[[Sequence[Sourced]], T]


def plan_truncated(plan: Plan[T], turns: Sequence[Sourced]) -> T:
    """Raises what `plan` raises, where even the least does not fit or the reason is another."""
    planned = _fitting(plan, turns)
    if planned is not None:
        return planned
    cuts = _cuts(turns)
    low, high = 0, len(cuts) - 1
    planned = plan(_without(turns, cuts[high]) if cuts else turns)
    while low < high:
        middle = (low + high) // 2
        fitting = _fitting(plan, _without(turns, cuts[middle]))
        if fitting is None:
            low = middle + 1
        else:
            high, planned = middle, fitting
    return planned


def _fitting(plan: Plan[T], turns: Sequence[Sourced]) -> T | None:
    try:
        return plan(turns)
    except ApiError as error:
        if error.code != "context_length_exceeded":
            raise
        return None


def _cuts(turns: Sequence[Sourced]) -> list[int]:
    """Where a user speaks, and no call before it has its output behind it."""
    called = {call["id"]: place for place, turn in enumerate(turns) for call in turn.message.get("tool_calls") or ()}
    parted: set[int] = set()
    for place, turn in enumerate(turns):
        if turn.role == "tool":
            parted.update(range(called.get(turn.message["tool_call_id"], place) + 1, place + 1))
    return [place for place, turn in enumerate(turns) if turn.role == "user" and place not in parted]


def _without(turns: Sequence[Sourced], cut: int) -> list[Sourced]:
    return [turn for place, turn in enumerate(turns) if place >= cut or turn.role in ("system", "developer")]
