"""Grammars in a step: masks that are filled while the forward pass runs, and what the drawn tokens come to."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import msgspec
import numpy as np
import torch
from llguidance import LLExecutor
from llguidance.numpy import fill_next_token_bitmask_par
from torch import Tensor

from engine.grammar import Matcher
from engine.rows import Row
from scheduler.plan import StepResult

log = logging.getLogger("headrace.engine")


class Mask(NamedTuple):
    rows: Tensor  # int64 [grammar rows]
    ruled_out: Tensor  # bool [grammar rows, vocab]

    def apply(self, logits: Tensor) -> None:
        """In place. logits: [rows, vocab]."""
        if len(self.rows) == len(logits):
            logits.masked_fill_(self.ruled_out, float("-inf"))
        else:
            logits[self.rows] = logits[self.rows].masked_fill_(self.ruled_out, float("-inf"))


class Masks:
    """`begin` before the forward pass, `finish` after it. Between the two a thread owns the rows' matchers."""

    def __init__(self, max_seqs: int, vocab_size: int, device: torch.device) -> None:
        self._bits = np.zeros((max_seqs, -(-vocab_size // 32)), np.int32)
        self._vocab_size = vocab_size
        self._device = device
        values = np.arange(256, dtype=np.uint8)[:, None]
        ruled_out = np.unpackbits(values, axis=1, bitorder="little") == 0
        self._of_byte = torch.from_numpy(ruled_out).to(device)  # [256, 8]
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammar-mask")
        self._executor: LLExecutor | None = None
        self._rows: list[int] = []
        self._filled: Future[None] | None = None

    def begin(self, rows: Sequence[Row]) -> None:
        """rows: those that will be sampled."""
        matchers = [row.matcher for row in rows if row.matcher is not None]
        self._rows = [index for index, row in enumerate(rows) if row.matcher is not None]
        # After a step that raised, its masks may still be in the making: one thread, so these come after them.
        self._filled = self._thread.submit(self._fill, matchers) if matchers else None

    def _fill(self, matchers: list[Matcher]) -> None:
        if self._executor is None:
            self._executor = LLExecutor()
        pairs = [(matcher, index) for index, matcher in enumerate(matchers)]
        fill_next_token_bitmask_par(self._executor, pairs, self._bits)  # type: ignore[arg-type]

    def finish(self) -> Mask | None:
        """None: no row follows a grammar."""
        if self._filled is None:
            return None
        self._filled.result()
        packed = torch.from_numpy(self._bits[: len(self._rows)].view(np.uint8)).to(self._device)
        bits = self._of_byte.index_select(0, packed.flatten().int()).view(len(self._rows), -1)
        return Mask(torch.tensor(self._rows, device=self._device), bits[:, : self._vocab_size])


def judge(result: StepResult, rows: Sequence[Row]) -> StepResult:
    """Adds which rows have come to the end of their grammar, or can follow it no further. rows: with their tokens."""
    stopped = [
        (index, row.matcher) for index, row in enumerate(rows) if row.matcher is not None and row.matcher.is_stopped()
    ]
    failed = [index for index, matcher in stopped if matcher.is_error()]
    for index, matcher in stopped:
        if index in failed:
            log.warning("a sequence ends, its grammar cannot be followed: %s", matcher.get_error())
    complete = [index for index, _ in stopped if index not in failed]
    return msgspec.structs.replace(result, complete=complete, failed=failed) if stopped else result
