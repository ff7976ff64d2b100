"""One permanent row per runner slot: block table, position and sampling state of the sequence that holds it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.exclusions import Exclusions, exclusions_of
from engine.grammar import Matcher, Matchers
from scheduler.plan import Admit
from scheduler.types import SamplingParams


class PenaltyState:
    """Which tokens a row has seen, for the penalties. Exists only for rows that asked for one."""

    def __init__(self, prompt: list[int], generated: list[int], vocab_size: int, device: torch.device) -> None:
        self.in_prompt = torch.zeros(vocab_size, dtype=torch.bool, device=device)
        self.in_prompt[torch.tensor(prompt, dtype=torch.int64, device=device)] = True
        past = torch.tensor(generated, dtype=torch.int64, device=device)
        self.counts = torch.bincount(past, minlength=vocab_size).int()  # of generated tokens

    def add(self, token: int) -> None:
        self.counts[token] += 1

    def apply(self, logits: Tensor, params: SamplingParams) -> Tensor:
        """Repetition over prompt and answer, then frequency and presence over the answer. logits: [vocab]."""
        seen = self.in_prompt | (self.counts > 0)
        if params.repetition != 1.0:
            punished = torch.where(logits > 0, logits / params.repetition, logits * params.repetition)
            logits = torch.where(seen, punished, logits)
        return logits - params.frequency * self.counts - params.presence * (self.counts > 0)


@dataclass(slots=True)
class Row:
    params: SamplingParams
    tokens: list[int]  # as admitted; generated ones are appended as they are sampled
    prompt_len: int
    num_blocks: int = 0  # valid entries of its block table
    penalties: PenaltyState | None = None
    bias: tuple[Tensor, Tensor] | None = field(default=None)  # ids, values
    exclusions: Exclusions | None = None
    matcher: Matcher | None = None

    @property
    def num_generated(self) -> int:
        return len(self.tokens) - self.prompt_len

    @property
    def generated(self) -> list[int]:
        return self.tokens[self.prompt_len :]

    def append(self, token: int) -> None:
        self.tokens.append(token)
        if self.penalties is not None:
            self.penalties.add(token)
        if self.matcher is not None:
            self.matcher.consume_tokens([token])


def new_row(admit: Admit, matchers: Matchers, vocab_size: int, device: torch.device) -> Row:
    params = admit.params
    row = Row(params, list(admit.tokens), admit.prompt_len)
    if params.repetition != 1.0 or params.presence or params.frequency:
        row.penalties = PenaltyState(row.tokens[: row.prompt_len], row.generated, vocab_size, device)
    if params.logit_bias:
        ids, values = zip(*params.logit_bias, strict=True)
        row.bias = (torch.tensor(ids, device=device), torch.tensor(values, device=device))
    row.exclusions = exclusions_of(params, device)
    if params.grammar is not None:
        row.matcher = matchers.start(admit.seq_id, row.generated)
    return row


class RowTable:
    """Rows by slot; block tables in one array that a batch is cut from."""

    def __init__(self, max_seqs: int, max_blocks: int, vocab_size: int, device: torch.device) -> None:
        self.rows: list[Row | None] = [None] * max_seqs
        self.matchers = Matchers()
        self.block_tables: NDArray[np.int32] = np.zeros((max_seqs, max_blocks), np.int32)
        self.vocab_size = vocab_size
        self._device = device

    def __getitem__(self, slot: int) -> Row:
        row = self.rows[slot]
        if row is None:
            raise RuntimeError(f"slot {slot} holds no sequence")
        return row

    def admit(self, admit: Admit) -> None:
        self.rows[admit.slot] = new_row(admit, self.matchers, self.vocab_size, self._device)
        self.block_tables[admit.slot] = 0
        self.extend(admit.slot, admit.blocks)

    def extend(self, slot: int, blocks: list[int]) -> None:
        row = self[slot]
        self.block_tables[slot, row.num_blocks : row.num_blocks + len(blocks)] = blocks
        row.num_blocks += len(blocks)

    def release(self, slot: int) -> None:
        self.rows[slot] = None

    def append(self, slot: int, token: int) -> None:
        self[slot].append(token)
