"""Executes plans on a GPU, one ahead of what is known: a step is enqueued while the one before it still runs.

    launch   tables and integers to the device, the step's graph, tokens on their way back     never waits
    finish   waits for the tokens of the oldest step

Rows that need the host between two tokens (engine/cuda/hosted.py) have their part in `finish`, on the logits that the
step left; while such a row lives, no step is launched ahead.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import msgspec
import numpy as np
import torch
from torch import Tensor

from engine.cuda import step as steps
from engine.cuda.decoder import CudaDecoder
from engine.cuda.filters import bounds, find_bounds
from engine.cuda.flash import LEAST_PAIRS
from engine.cuda.graphs import Graphs, decode_sizes, mixed_sizes
from engine.cuda.hosted import HostedRows
from engine.cuda.sampling import sample_plain, scratch
from engine.cuda.step import Ints, Layout, StepArrays, StepBuffer, StepTensors
from engine.cuda.tables import DeviceTables
from engine.cuda.tiles import Tiling, tile_rows
from engine.grammar import Matchers
from engine.parallel.messages import Drawn
from scheduler.plan import StepPlan, StepResult, Work
from scheduler.types import Limits


@dataclass(slots=True)
class Flight:
    """A step on the device."""

    plan: StepPlan
    slots: list[int]  # of its samples
    hosted: bool  # the host has a part in it
    tokens: Tensor  # pinned [max_seqs]
    arrived: torch.cuda.Event | None


class CudaRunner:
    """Rows, tables, graphs. The scheduler decides what is in them."""

    def __init__(self, model: CudaDecoder, tables: DeviceTables, limits: Limits, max_tiles: int) -> None:
        self._model = model
        self._tables = tables
        group = model.spec.num_heads // model.spec.num_kv_heads
        rows = tile_rows(group, model.weights.embed.dtype)
        self._tiling = Tiling(group, model.spec.num_kv_heads, rows, max_tiles)
        embed = model.weights.embed
        self._device, dtype, vocab = embed.device, embed.dtype, model.spec.vocab_size
        self._max_seqs = limits.max_seqs
        self.max_tokens = steps.max_tokens(limits)
        largest = Layout(self.max_tokens, limits.max_seqs, True, limits.max_seqs)
        self._buffer = StepBuffer(largest, max_tiles, tables.padding_row, self._device)
        self._hidden = torch.zeros(self.max_tokens, model.spec.hidden, dtype=dtype, device=self._device)
        self._logits = torch.zeros(limits.max_seqs, vocab, dtype=dtype, device=self._device)
        self._bounds = bounds(limits.max_seqs, self._device)
        self._scratch = scratch(limits.max_seqs, vocab, self._device)
        self._tokens = torch.zeros(limits.max_seqs, dtype=torch.int64, device=self._device)
        self._decode = Graphs(decode_sizes(limits.max_seqs), self._run_decode)
        self._mixed = Graphs(mixed_sizes(limits.max_step_tokens), self._run_mixed)
        self._hosted = HostedRows(model, limits.max_seqs, vocab, self._device)
        self._known: dict[int, Ints] = {}  # by slot: the tokens it was admitted with
        self._flights: deque[Flight] = deque()
        self.drawn: Drawn = []  # by the host, in the step that was finished last
        self._free_tokens = [self._pinned() for _ in range(steps.HOST_BUFFERS)]

    def _pinned(self) -> Tensor:
        return torch.zeros(self._max_seqs, dtype=torch.int64, pin_memory=self._device.type == "cuda")

    @property
    def matchers(self) -> Matchers:
        return self._hosted.matchers

    @property
    def ahead(self) -> int:
        return 0 if self._hosted else 1

    @property
    def attention(self) -> str:
        """Whose kernels."""
        return "triton" if self._model.flash is None else "triton, flash-attn-4 for long prompts"

    # --- start ---

    @staticmethod
    def sizes(limits: Limits) -> list[int]:
        """Of all steps that are captured."""
        return decode_sizes(limits.max_seqs) + mixed_sizes(limits.max_step_tokens)

    @property
    def largest_captured(self) -> int:
        return max(self._decode.sizes + self._mixed.sizes)

    @torch.inference_mode()
    def capture(self, report: Callable[[int, int], None]) -> None:
        """Compiles all kernels and captures all graphs."""
        total = len(self._decode.sizes) + len(self._mixed.sizes)
        done = 0

        def one_more() -> None:
            nonlocal done
            done += 1
            report(done, total)

        pool = torch.cuda.graph_pool_handle()
        gc.collect()
        gc.disable()  # a graph of an earlier runner that is freed in the middle of a capture ends it
        try:
            self._mixed.capture(pool, one_more)
            self._decode.capture(pool, one_more)
        finally:
            gc.enable()

    @torch.inference_mode()
    def run_padding(self, num_tokens: int) -> None:
        """A step of so many tokens that nobody asked for, kernel by kernel: to compile, or to see what it needs."""
        padded = steps.rounded(num_tokens)
        layout = Layout(padded, self._max_seqs, True)
        self._buffer.write(self._arrays([]), layout)
        views = self._buffer.views(layout)
        normed = self._model.forward(views, self._hidden[:padded])
        self._sample(normed[: self._max_seqs], views, min(padded, self._max_seqs))

    # --- a step ---

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> None:
        """Enqueues it. Where this raises, nothing of it is in flight."""
        self._update_rows(plan)
        slots = [work.slot for work in plan.works if work.sample]
        self._hosted.begin(slots)
        arrays = self._arrays(plan.works)
        self._tables.flush()
        if arrays.is_decode:
            size = self._decode.size_for(arrays.num_tokens)
            assert size is not None, "there is a size for every number of sequences"
            self._buffer.write(arrays, Layout(size, size, False))
            self._decode.launch(size)
        else:
            self._launch_mixed(arrays, self._hosted.reading(plan.works))
        self._flights.append(self._bring_back(plan, slots))

    def _arrays(self, works: list[Work]) -> StepArrays:
        return steps.arrays(works, self._known, self._tiling)

    def _update_rows(self, plan: StepPlan) -> None:
        for slot in plan.releases:
            self._known.pop(slot, None)
            self._hosted.release(slot)
        for admit in plan.admits:
            self._tables.admit(admit)
            self._known[admit.slot] = np.array(admit.tokens, np.int32)
            self._hosted.admit(admit)
        for work in plan.works:
            if work.new_blocks:
                self._tables.extend(work.slot, work.new_blocks)

    def _launch_mixed(self, arrays: StepArrays, whole: bool) -> None:
        """whole: the hidden states of all tokens are wanted."""
        flash = self._model.flash is not None and arrays.num_pairs >= LEAST_PAIRS
        size = None if flash else self._mixed.size_for(arrays.num_tokens)
        padded = size or steps.rounded(arrays.num_tokens)
        layout = Layout(padded, self._max_seqs, True, arrays.num_runs if flash else 0)
        self._buffer.write(arrays, layout)
        views = self._buffer.views(layout)
        hidden = self._hidden[:padded]
        asked = None if whole else self._asked(views, padded)
        if flash or (whole and self._asked(views, padded) is not None):
            self._model.forward(replace(views, run_tokens=arrays.run_tokens if flash else None), hidden, asked)
        else:
            self._mixed.launch(padded)
        if arrays.num_samples:
            # As many rows as some decode step has: what the head needs for others would be loaded here, in mid-service.
            rows = self._decode.size_for(arrays.num_samples)
            assert rows is not None
            sampled = hidden.index_select(0, views.samples[:rows]) if asked is None else hidden[:rows]
            self._sample(self._model.norm(sampled), views, rows)

    def _asked(self, views: StepTensors, size: int) -> Tensor | None:
        """Which tokens the last layer goes on with. None: all, for there are hardly more than may be sampled."""
        return views.samples if size > self._max_seqs else None

    def _run_decode(self, size: int) -> None:
        views = self._buffer.views(Layout(size, size, False))
        self._sample(self._model.forward(views, self._hidden[:size]), views, size)

    def _run_mixed(self, size: int) -> None:
        views = self._buffer.views(Layout(size, self._max_seqs, True))
        self._model.forward(views, self._hidden[:size], self._asked(views, size))

    def _sample(self, normed: Tensor, views: StepTensors, num_samples: int) -> None:
        """normed: final hidden states of the sampled tokens."""
        tables, logits = self._tables, self._logits[:num_samples]
        self._model.logits(normed, logits)
        find_bounds(logits, views.samples, views.rows, tables.temperatures, tables.filters, views.counts, self._bounds)
        sample_plain(
            logits,
            views.samples,
            views.rows,
            views.positions,
            tables.temperatures,
            tables.seeds,
            views.counts,
            self._bounds,
            self._scratch,
            self._tokens,
            tables.last_tokens,
        )

    def _bring_back(self, plan: StepPlan, slots: list[int]) -> Flight:
        tokens, arrived = self._free_tokens[-1], None
        tokens[: len(slots)].copy_(self._tokens[: len(slots)], non_blocking=True)
        if self._device.type == "cuda":
            arrived = torch.cuda.Event()
            arrived.record()
        self._free_tokens.pop()
        return Flight(plan, slots, bool(self._hosted), tokens, arrived)

    @torch.inference_mode()
    def finish(self) -> StepResult:
        """Of the oldest."""
        flight = self._flights.popleft()
        self.drawn = []
        try:
            if flight.arrived is not None:
                flight.arrived.synchronize()
            tokens: list[int] = flight.tokens[: len(flight.slots)].tolist()
        finally:
            self._free_tokens.append(flight.tokens)
        if not flight.hosted:  # not even where a step behind it has admitted such rows
            return StepResult(tokens, [])
        return self._finish_hosted(flight.plan.works, flight.slots, tokens)

    def _finish_hosted(self, works: list[Work], slots: list[int], tokens: list[int]) -> StepResult:
        prompts = self._hosted.read(works, self._hidden)
        result = self._hosted.sample(slots, tokens, self._logits)
        members = [index for index, slot in enumerate(slots) if slot in self._hosted]
        if members:
            self.drawn = [(slots[index], result.tokens[index]) for index in members]
            self.correct(self.drawn)
        return msgspec.structs.replace(result, prompts=prompts)

    @torch.inference_mode()
    def correct(self, drawn: Drawn) -> None:
        """The last tokens of these rows are not those that the device has drawn."""
        if drawn:
            slots, tokens = torch.tensor(list(zip(*drawn, strict=True)), device=self._device)
            self._tables.store(slots, tokens)

    def execute(self, plan: StepPlan) -> StepResult:
        """Where nothing else is in flight."""
        self.launch(plan)
        return self.finish()
