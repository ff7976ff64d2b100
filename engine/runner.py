"""Executes step plans: rows, the batch's tensors, the forward pass, sampling."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine import sampler
from engine.batch import BatchView
from engine.rows import RowTable
from scheduler.plan import StepPlan, StepResult, Work


class Model(Protocol):
    def forward(self, view: BatchView) -> Tensor:
        """Logits, float32 [num_samples, vocab]; writes the keys and values of every row."""


class Runner:
    """Owns the rows of all slots. The scheduler decides what is in them."""

    def __init__(self, model: Model, rows: RowTable, block_size: int, device: torch.device) -> None:
        self._model = model
        self._rows = rows
        self._block_size = block_size
        self._device = device

    @torch.inference_mode()  # sampling changes in place what the forward pass made in this mode
    def execute(self, plan: StepPlan) -> StepResult:
        """Runs one step. Whatever it raises, later plans may still be executed once the scheduler has failed this."""
        for slot in plan.releases:
            self.release(slot)
        for admit in plan.admits:
            self._rows.admit(admit)
        for work in plan.works:
            if work.new_blocks:
                self._rows.extend(work.slot, work.new_blocks)
        logits = self._model.forward(self._view(plan.works))
        slots = [work.slot for work in plan.works if work.sample]
        if not slots:
            return StepResult([], [])
        result = sampler.sample(logits, [self._rows[slot] for slot in slots])
        for slot, token in zip(slots, result.tokens, strict=True):
            self._rows.append(slot, token)
        return result

    def release(self, slot: int) -> None:
        self._rows.release(slot)

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
        )

    def _to_device(self, array: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(array).to(self._device)
