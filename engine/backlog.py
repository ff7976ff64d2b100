"""What one gateway has not taken yet, merged: one output a sequence, however many steps it is behind.

A gateway that falls behind then has less to do for each token, not more to wait for: its streams get what several steps
brought in one event, and what lies between engine and client stays a few steps long.
"""

from __future__ import annotations

from scheduler.plan import TokenLogprob
from scheduler.protocol import FirstToken, Output, Outputs, StepRecord
from scheduler.types import FinishReason

MOST = 1 << 17  # weight at which it becomes a frame, well below the largest


class _Merged:
    """Outputs of one sequence."""

    __slots__ = ("away_s", "finish", "first", "logprobs", "tokens")

    def __init__(self, output: Output) -> None:
        self.tokens: list[int] = list(output.tokens)
        self.logprobs: list[TokenLogprob] | None = None if output.logprobs is None else list(output.logprobs)
        self.finish: FinishReason | None = output.finish
        self.first: FirstToken | None = output.first
        self.away_s: float | None = output.away_s

    def add(self, output: Output) -> None:
        self.tokens += output.tokens
        self.finish = output.finish
        if output.away_s is not None:
            self.away_s = (self.away_s or 0.0) + output.away_s
        if output.logprobs is not None:
            self.logprobs = (self.logprobs or []) + output.logprobs


class Backlog:
    def __init__(self) -> None:
        self._sequences: dict[int, _Merged] = {}
        self._steps: list[StepRecord] = []
        self._last: Outputs | None = None
        self._weight = 0

    @property
    def is_full(self) -> bool:
        return self._weight >= MOST

    def add(self, outputs: Outputs) -> None:
        """In the order of steps."""
        self._last = outputs
        self._steps += outputs.steps
        for output in outputs.outputs:
            merged = self._sequences.get(output.seq_id)
            if merged is None:
                self._sequences[output.seq_id] = _Merged(output)
            else:
                merged.add(output)
            self._weight += len(output.tokens) + sum(2 + len(each.top_ids) for each in output.logprobs or ())
        self._weight += len(outputs.steps)

    def take(self) -> Outputs | None:
        """All of it, as if one step had brought it; None if there is nothing."""
        last = self._last
        if last is None:
            return None
        outputs = [
            Output(seq_id, merged.tokens, merged.finish, merged.logprobs, merged.first, merged.away_s)
            for seq_id, merged in self._sequences.items()
        ]
        taken = Outputs(outputs, self._steps, last.stats)
        self._sequences, self._steps, self._last, self._weight = {}, [], None, 0
        return taken
