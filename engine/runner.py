"""Executes step plans: rows, the batch's tensors, the forward pass, sampling."""

from __future__ import annotations

from collections import deque
from typing import Protocol

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine import sampler
from engine.batch import BatchView
from engine.constraint import Masks, judge
from engine.grammar import Matchers
from engine.parallel.messages import Drawn
from engine.prompt import Head, PromptReaders
from engine.rows import RowTable
from scheduler.plan import StepPlan, StepResult, Work


class Model(Head, Protocol):
    def forward(self, view: BatchView, asked: Tensor | None = None) -> Tensor:
        """Hidden states before the final norm: [tokens, hidden], or [asked, hidden] of the rows `asked`, ascending.
        Writes the keys and values of every row."""


class Runner:
    """Owns the rows of all slots. The scheduler decides what is in them."""

    def __init__(
        self, model: Model, rows: RowTable, block_size: int, device: torch.device, prev_ids: bool = False
    ) -> None:
        """prev_ids: the model reads them."""
        self._model = model
        self._rows = rows
        self._masks = Masks(len(rows.rows), rows.vocab_size, device)
        self._prompts = PromptReaders(model)
        self._block_size = block_size
        self._device = device
        self._gives_prev_ids = prev_ids
        self._launched: deque[StepPlan] = deque()
        self.drawn: Drawn = []  # in the step that was finished last

    @property
    def matchers(self) -> Matchers:
        return self._rows.matchers

    @property
    def ahead(self) -> int:
        return 0  # the host does the work: there is nothing to hide behind it

    def launch(self, plan: StepPlan) -> None:
        self._launched.append(plan)

    @torch.inference_mode()  # sampling changes in place what the forward pass made in this mode
    def finish(self) -> StepResult:
        """Runs the whole step. Whatever it raises, later plans may still be executed once the scheduler has failed
        this."""
        plan = self._launched.popleft()
        self.drawn = []
        self._update_rows(plan)
        slots = [work.slot for work in plan.works if work.sample]
        sampled = [self._rows[slot] for slot in slots]
        self._masks.begin(sampled)
        view = self._view(plan.works)
        asked = None if self._prompts.reading(plan.works) else view.sample_rows
        hidden = self._model.forward(view, asked)
        prompts = self._prompts.read(plan.works, hidden)
        if not slots:
            return StepResult([], [])
        logits = self._model.head(hidden[view.sample_rows] if asked is None else hidden)
        result = sampler.sample(logits, sampled, self._masks.finish())
        for slot, token in zip(slots, result.tokens, strict=True):
            self._rows.append(slot, token)
        self.drawn = list(zip(slots, result.tokens, strict=True))
        return msgspec.structs.replace(judge(result, sampled), prompts=prompts)

    def execute(self, plan: StepPlan) -> StepResult:
        """Where nothing else is in flight."""
        self.launch(plan)
        return self.finish()

    def correct(self, drawn: Drawn) -> None:
        """Of the step that was finished last: another rank has drawn these."""
        for slot, token in drawn:
            self._rows[slot].tokens[-1] = token

    def _update_rows(self, plan: StepPlan) -> None:
        for slot in plan.releases:
            self.release(slot)
        for admit in plan.admits:
            self._rows.admit(admit)
            self._prompts.admit(admit)
        for work in plan.works:
            if work.new_blocks:
                self._rows.extend(work.slot, work.new_blocks)

    def release(self, slot: int) -> None:
        self._rows.release(slot)
        self._prompts.release(slot)

    def _view(self, works: list[Work]) -> BatchView:
        counts = np.array([work.count for work in works], np.int32)
        starts = np.array([work.start for work in works], np.int32)
        q_starts: NDArray[np.int32] = np.zeros(len(works) + 1, np.int32)
        np.cumsum(counts, out=q_starts[1:])
        kv_lens = starts + counts
        widest = -(-int(kv_lens.max()) // self._block_size)
        tables = self._rows.block_tables[[work.slot for work in works], :widest]
        sequence = np.repeat(np.arange(len(works)), counts)  # [num_tokens]: whose row it is
        positions = np.arange(q_starts[-1]) - q_starts[sequence] + starts[sequence]
        blocks = tables[sequence, positions // self._block_size].astype(np.int64)
        sampled = np.array([work.sample for work in works], bool)
        ids: list[int] = []
        for work in works:
            ids += self._rows[work.slot].tokens[work.start : work.start + work.count]
        return BatchView(
            ids=torch.tensor(ids, device=self._device),
            positions=self._to_device(positions),
            slots=self._to_device(blocks * self._block_size + positions % self._block_size),
            sample_rows=self._to_device((q_starts[1:] - 1)[sampled].astype(np.int64)),
            q_starts=q_starts,
            kv_lens=kv_lens,
            block_tables=tables,
            prev_ids=self._prev_ids(works) if self._gives_prev_ids else None,
        )

    def _prev_ids(self, works: list[Work]) -> Tensor:
        ids: list[int] = []
        for work in works:
            tokens = self._rows[work.slot].tokens
            ids += (
                tokens[work.start - 1 : work.start + work.count - 1] if work.start else [0, *tokens[: work.count - 1]]
            )
        return torch.tensor(ids, device=self._device)

    def _to_device(self, array: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(array).to(self._device)
