"""Tokens that a request rules out: all but its allowed ids, those that would complete a bad word, early ends.

They become so unlikely that any other token comes first, but not impossible. That is left to grammars, which so have
the last word, and a row whose every token is ruled out still has one to draw.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scheduler.types import SamplingParams

RULED_OUT = -1e9
NOT_ALLOWED = -2e9  # what is not allowed comes after what is allowed and ruled out


class Exclusions:
    """Those of one row."""

    def __init__(self, params: SamplingParams, device: torch.device) -> None:
        self._device = device
        self._always = [word[0] for word in params.bad_words if len(word) == 1]
        self._words = [(list(word[:-1]), word[-1]) for word in params.bad_words if len(word) > 1]
        self._ends = params.stop_ids
        self._min_tokens = params.min_tokens
        self._allowed = torch.tensor(params.allowed_ids, device=device) if params.allowed_ids else None

    def apply(self, logits: Tensor, generated: list[int]) -> Tensor:
        """A bad word counts where all of it is generated. logits: [vocab]."""
        ids = self._always + [last for rest, last in self._words if generated[-len(rest) :] == rest]
        if len(generated) < self._min_tokens:
            ids += self._ends
        if ids:
            logits = logits.index_fill(0, torch.tensor(ids, device=self._device), RULED_OUT)
        if self._allowed is not None:
            others = torch.full_like(logits, NOT_ALLOWED)
            logits = others.index_copy(0, self._allowed, logits[self._allowed])
        return logits


def exclusions_of(params: SamplingParams, device: torch.device) -> Exclusions | None:
    """None: any token may come."""
    ends_early = params.min_tokens > 0 and len(params.stop_ids) > 0
    return Exclusions(params, device) if ends_early or params.allowed_ids or params.bad_words else None
