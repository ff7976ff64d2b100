"""Where the time of sequences goes, for a price a step and a prompt, not a price a token.

Whoever waits in the queue waits for what its head lacks, and whoever decodes is in every step. So totals that only grow
are enough: a sequence is charged with what they gained between two of its moments.
"""

from __future__ import annotations

from collections.abc import Sequence as Many

from scheduler.plan import Delays, Work
from scheduler.protocol import WaitReason
from scheduler.stats import TokenRate
from scheduler.types import Sequence

SMOOTHING = 0.2  # of the newest step in what a step without prompts takes


class WaitTotals:
    """Seconds that the head of the queue has waited, by what for."""

    def __init__(self) -> None:
        self._totals: dict[WaitReason, float] = {"step": 0.0, "rows": 0.0, "blocks": 0.0}
        self._reason: WaitReason = "step"
        self._since = 0.0

    def turn(self, reason: WaitReason, now: float) -> None:
        """A step was planned, and this is what the head lacked."""
        self._totals[self._reason] += now - self._since
        self._reason, self._since = reason, now

    def at(self, now: float) -> tuple[float, float]:
        """So far: for rows, for blocks."""
        pending = now - self._since
        rows, blocks = self._totals["rows"], self._totals["blocks"]
        return rows + pending * (self._reason == "rows"), blocks + pending * (self._reason == "blocks")


class PrefillShares:
    """What the prompts of others cost those who share steps with them."""

    def __init__(self) -> None:
        self.of_decodes_s = 0.0  # what a sequence that decodes all the time would have been spared so far
        self._plain_s: float | None = None  # a step without prompts, lately
        self._counted_to = float("-inf")
        self.prompt_rate = TokenRate()  # of steps with prompts, whatever decodes were in them

    def add(self, works: Many[Work], seqs: Many[Sequence], num_decodes: int, started: float, now: float) -> float:
        """A step, whose first works are the decodes. Returns its seconds; no time counts for two steps.

        A prompt is charged by its neighbours' share of the tokens. To a decode, which hardly changes with its number of
        rows, the prompts cost what the step took longer than those without.
        """
        seconds = max(0.0, now - max(started, self._counted_to))
        self._counted_to = now
        prompts = works[num_decodes:]
        if not prompts:
            before = seconds if self._plain_s is None else self._plain_s
            self._plain_s = before + SMOOTHING * (seconds - before)
            return seconds
        num_prompt_tokens = sum([work.count for work in prompts])
        self.prompt_rate.add(num_prompt_tokens, now - seconds, now)
        per_token = seconds / (num_decodes + num_prompt_tokens)
        for work, seq in zip(prompts, seqs[num_decodes:], strict=True):
            seq.others_prefill_s += per_token * (num_prompt_tokens - work.count)
        if num_decodes:
            plain_s = per_token * num_decodes if self._plain_s is None else self._plain_s
            self.of_decodes_s += max(0.0, seconds - plain_s)
        return seconds


def enlist(seq: Sequence, totals: WaitTotals, now: float) -> None:
    """It is in the queue from now on, and not parked."""
    seq.ready_at = now
    seq.waited_before = totals.at(now)


def overtake(seq: Sequence, totals: WaitTotals, now: float) -> None:
    """From now on it waits for fairness, whatever the head of the queue lacks."""
    seq.waited = _waited(seq, totals, now)
    seq.overtaken_at = now


def admit(seq: Sequence, totals: WaitTotals, now: float) -> None:
    if seq.overtaken_at is None:
        seq.waited = _waited(seq, totals, now)


def _waited(seq: Sequence, totals: WaitTotals, now: float) -> tuple[float, float]:
    rows, blocks = totals.at(now)
    return rows - seq.waited_before[0], blocks - seq.waited_before[1]


def until_first_token(seq: Sequence) -> Delays:
    """Of a sequence that was admitted."""
    assert seq.admitted is not None
    rows, blocks = seq.waited
    return Delays(
        grammar_s=max(0.0, seq.enlisted - seq.arrived),
        choice_s=max(0.0, seq.ready_at - seq.enlisted),
        rows_s=rows,
        blocks_s=blocks,
        others_prefill_s=seq.others_prefill_s,
        away_s=seq.away_s,
        predicted_s=seq.predicted_s,
        fairness_s=0.0 if seq.overtaken_at is None else seq.admitted - seq.overtaken_at,
    )
