"""The time of a request in the engine, cut by what the engine says of it.

        enter              submitted           first output                      last output
          |  for other prompts  |  queue, own and others' prefill  |  decode, others' prefill, preemption  |

Durations of the engine's clock within spans of the gateway's: what they leave is the rest of each span, so that all of
it sums whatever the clocks do. Several choices run at a time; the one that ends last is what the request waited for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gateway.timeline.laps import Cause
from scheduler.protocol import FirstToken, WaitReason

_WAITING: Mapping[WaitReason, Cause] = {
    "step": "waiting_step",
    "rows": "waiting_rows",
    "blocks": "waiting_blocks",
}


@dataclass(slots=True)
class Visit:
    """Of one sequence, on the gateway's clock."""

    submitted_at: float | None = None
    heard_at: float | None = None  # its first output
    first: FirstToken | None = None
    others_before_s: float = 0.0  # what decodes had lost to prompts by then, since the engine's start
    others_after_s: float = 0.0  # and by now, or at its end
    away_s: float = 0.0  # preempted, after its first token

    def heard(self, first: FirstToken, now: float, others_s: float) -> None:
        self.heard_at, self.first = now, first
        self.others_before_s = self.others_after_s = others_s

    def postpone(self, seconds: float, others_s: float) -> None:
        """So much time does not count, and another engine counts from now on."""
        if self.submitted_at is not None:
            self.submitted_at += seconds
        if self.heard_at is not None:
            self.heard_at += seconds
        gained_s = self.others_after_s - self.others_before_s
        self.others_before_s, self.others_after_s = others_s - gained_s, others_s


def cut(visit: Visit, began: float, seconds: float, waits_for: WaitReason = "step") -> dict[Cause, float]:
    """Of `seconds` since `began`. waits_for: what a sequence waits for that has not been heard of."""
    submitted = seconds if visit.submitted_at is None else min(seconds, max(0.0, visit.submitted_at - began))
    spent: dict[Cause, float] = {"waiting_rows": submitted}
    if visit.heard_at is None or visit.first is None:
        _add(spent, {_WAITING[waits_for]: seconds - submitted})
        return spent
    before = min(seconds, max(submitted, visit.heard_at - began))
    _add(spent, _until_first(visit.first, before - submitted))
    _add(spent, _after_first(visit, seconds - before))
    return spent


def _until_first(first: FirstToken, seconds: float) -> dict[Cause, float]:
    told = first.delays
    own = max(0.0, first.prefill_s - told.others_prefill_s - told.away_s)
    known: dict[Cause, float] = {
        "grammar": told.grammar_s,
        "waiting_choice": told.choice_s,
        "waiting_rows": told.rows_s,
        "waiting_blocks": told.blocks_s,
        "waiting_fairness": told.fairness_s,
        "prefill": own,
        "others_prefill": told.others_prefill_s,
        "preemption": told.away_s,
    }
    return _filled(known, "waiting_step", seconds)


def _after_first(visit: Visit, seconds: float) -> dict[Cause, float]:
    away = min(seconds, visit.away_s)
    others = max(0.0, visit.others_after_s - visit.others_before_s)
    # A sequence that is away loses nothing to the prompts of those who are not.
    known: dict[Cause, float] = {"preemption": away, "others_prefill": min(others, seconds - away)}
    return _filled(known, "decode", seconds)


def _filled(known: dict[Cause, float], rest: Cause, seconds: float) -> dict[Cause, float]:
    """With what is left over; in proportion, where more is known than there is."""
    total = sum(known.values())
    if total > seconds:
        return {cause: spent * seconds / total for cause, spent in known.items()}
    return {**known, rest: seconds - total}


def _add(spent: dict[Cause, float], more: Mapping[Cause, float]) -> None:
    for cause, seconds in more.items():
        spent[cause] = spent.get(cause, 0.0) + seconds
