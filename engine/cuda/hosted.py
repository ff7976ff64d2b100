"""Rows that the host has a part in between two tokens: penalties, biases, ruled-out ids, grammars, log-probabilities,
prompts that are read. All others never leave the device, and the host never waits for them.

What they ask for is computed on the device all the same, by the code that serves every device (engine/sampler.py), on
the logits that a step left there.
"""

from __future__ import annotations

import msgspec
import torch
from torch import Tensor

from engine import sampler
from engine.constraint import Masks, judge
from engine.grammar import Matchers
from engine.prompt import Head, PromptReaders
from engine.rows import Row, new_row
from scheduler.plan import Admit, PromptResult, StepResult, TokenLogprob, Work
from scheduler.types import SamplingParams


def needs_host(params: SamplingParams) -> bool:
    return (
        params.repetition != 1.0
        or params.presence != 0.0
        or params.frequency != 0.0
        or bool(params.logit_bias or params.allowed_ids or params.bad_words)
        or (params.min_tokens > 0 and bool(params.stop_ids))
        or params.grammar is not None
        or params.logprobs is not None
        or params.reads_prompt
    )


class HostedRows:
    """By slot. Empty, it costs nothing."""

    def __init__(self, model: Head, max_seqs: int, vocab_size: int, device: torch.device) -> None:
        self.matchers = Matchers()
        self._rows: dict[int, Row] = {}
        self._masks = Masks(max_seqs, vocab_size, device)
        self._prompts = PromptReaders(model)
        self._vocab_size = vocab_size
        self._device = device

    def __bool__(self) -> bool:
        return bool(self._rows)

    def __contains__(self, slot: int) -> bool:
        return slot in self._rows

    def admit(self, admit: Admit) -> None:
        self.release(admit.slot)
        if needs_host(admit.params):
            self._rows[admit.slot] = new_row(admit, self.matchers, self._vocab_size, self._device)
            self._prompts.admit(admit)

    def release(self, slot: int) -> None:
        if self._rows.pop(slot, None) is not None:
            self._prompts.release(slot)

    def begin(self, slots: list[int]) -> None:
        """Before the forward pass of a step that samples these slots: a thread fills grammars' masks meanwhile."""
        if self._rows:
            self._masks.begin([self._rows[slot] for slot in slots if slot in self._rows])

    def reading(self, works: list[Work]) -> bool:
        """Whether hidden states of all tokens are needed."""
        return self._prompts.reading(works)

    def read(self, works: list[Work], hidden: Tensor) -> dict[int, PromptResult]:
        """What the step's hidden states, [tokens, hidden] before the final norm, tell of prompts that end here."""
        return self._prompts.read(works, hidden)

    def sample(self, slots: list[int], tokens: list[int], logits: Tensor) -> StepResult:
        """Draws again for the rows that are here. slots, tokens: of all samples; logits: [samples, vocab]."""
        members = [index for index, slot in enumerate(slots) if slot in self._rows]
        if not members:
            return StepResult(tokens, [])
        rows = [self._rows[slots[index]] for index in members]
        chosen = logits.index_select(0, torch.tensor(members, device=self._device)).float()
        result = sampler.sample(chosen, rows, self._masks.finish())
        for row, token in zip(rows, result.tokens, strict=True):
            row.append(token)
        return _spread(judge(result, rows), members, tokens)


def _spread(result: StepResult, members: list[int], tokens: list[int]) -> StepResult:
    """A result of some samples as that of all."""
    drawn = dict(zip(members, result.tokens, strict=True))
    told = dict(zip(members, result.logprobs, strict=True))
    logprobs: list[TokenLogprob | None] = [told.get(index) for index in range(len(tokens))]
    return msgspec.structs.replace(
        result,
        tokens=[drawn.get(index, token) for index, token in enumerate(tokens)],
        logprobs=logprobs,
        complete=[members[index] for index in result.complete],
        failed=[members[index] for index in result.failed],
    )
