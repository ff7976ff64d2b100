"""One step's plan as integers: laid out on the host, copied in one go to where kernels and graphs read it.

    counts | ids | rows | positions | samples | prefill tiles | runs        | decode tiles
    8      | T   | T    | T         | S       | T + 2         | 3 * (R + 1) | 8 for each      (int32)

A step is padded to T tokens and S samples, so that a captured graph of that size fits it; R runs are there for
engine/cuda/flash.py, in steps that are in no graph. Tiles of decode come last: only as many as there are travel.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.cuda.tiles import SPLIT_AT, TILE_INTS, Tiling, decode_tiles, prefill_tiles, split_for
from scheduler.plan import Work
from scheduler.types import Limits

NUM_COUNTS = 8  # used: prefill tiles, decode tiles, tokens, samples, and keys of a decode tile
IN_ROW = -1  # an id: the last token that was sampled in this row
ALIGN = 4
ROUND_UP = 16  # tokens of a step that is in no graph: kernels are compiled anew for odd numbers
HOST_BUFFERS = 3  # one being filled, one for each step in flight

Ints = NDArray[np.int32]


def rounded(num_tokens: int) -> int:
    return -(-num_tokens // ROUND_UP) * ROUND_UP


def max_tokens(limits: Limits) -> int:
    """Of any step, padding included."""
    return rounded(max(limits.max_step_tokens, limits.max_seqs))


@dataclass(frozen=True, slots=True)
class StepArrays:
    """A plan's integers, unpadded."""

    ids: Ints  # [tokens]: a token id, or IN_ROW
    rows: Ints  # [tokens]
    positions: Ints  # [tokens]
    samples: Ints  # [samples]: index of the token
    decode: Ints  # [D, TILE_INTS]
    prefill: Ints  # [P, 2]: first token, how many
    split: int  # keys of a decode tile
    runs: Ints  # [3, R + 1]: first tokens and the end, counted from run_tokens.start; keys; rows
    run_tokens: slice  # of the first work of several tokens, and all that follow
    num_pairs: int  # of a token of a run and a key of its row

    @property
    def num_tokens(self) -> int:
        return len(self.ids)

    @property
    def num_samples(self) -> int:
        return len(self.samples)

    @property
    def num_runs(self) -> int:
        return len(self.runs[0]) - 1

    @property
    def is_decode(self) -> bool:
        """Every token is the only one of its row, and the next is sampled from it."""
        return len(self.prefill) == 0 and self.num_samples == self.num_tokens


@dataclass(frozen=True, slots=True)
class StepTensors:
    """Views of the device's buffer, for one (T, S)."""

    counts: Tensor
    ids: Tensor
    rows: Tensor
    positions: Tensor
    samples: Tensor
    prefill: Tensor
    runs: Tensor  # [3, R + 1]
    decode: Tensor  # flat
    run_tokens: slice | None = None  # where FlashAttention is to attend for the runs


def arrays(works: list[Work], prompts: dict[int, Ints], tiling: Tiling) -> StepArrays:
    """prompts: the tokens that each row was admitted with; what follows them is in the row on the device."""
    slots = np.array([work.slot for work in works], np.int32)
    starts = np.array([work.start for work in works], np.int32)
    counts = np.array([work.count for work in works], np.int32)
    ends = np.cumsum(counts, dtype=np.int32)
    begins = ends - counts
    rows = np.repeat(slots, counts)
    positions = np.arange(len(rows), dtype=np.int32) + np.repeat(starts - begins, counts)
    ids = np.full(len(rows), IN_ROW, np.int32)
    for work, begin, end in zip(works, begins.tolist(), ends.tolist(), strict=True):
        known = prompts[work.slot]
        if work.start < len(known):
            ids[begin:end] = known[work.start : work.start + work.count]
    ends_at = starts + counts
    alone = counts == 1
    many = ~alone
    samples = (ends - 1)[np.array([work.sample for work in works], bool)]
    split = split_for(ends_at[alone], tiling.kv_heads, tiling.max_decode_tiles)
    decode = decode_tiles(begins[alone], slots[alone], ends_at[alone], split)
    prefill = prefill_tiles(begins[many], counts[many], starts[many], tiling.group, tiling.prefill_rows)
    first = int(many.argmax()) if many.any() else len(works)
    span = slice(int(begins[first]) if first < len(works) else len(rows), len(rows))
    runs = np.zeros((3, len(works) - first + 1), np.int32)
    runs[0, :-1], runs[0, -1] = begins[first:] - span.start, span.stop - span.start
    runs[1, :-1], runs[2, :-1] = ends_at[first:], slots[first:]
    pairs = int(np.dot(counts[first:].astype(np.int64), ends_at[first:]))
    return StepArrays(ids, rows, positions, samples, decode, prefill, split, runs, span, pairs)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each part of a step of (tokens, samples) lies. Every part begins at a multiple of 16 bytes: kernels are
    compiled anew for pointers that do not."""

    num_tokens: int
    num_samples: int
    has_prefill: bool
    num_runs: int = 0

    @property
    def parts(self) -> list[slice]:
        """Of counts, ids, rows, positions, samples, prefill tiles, runs; the tiles of decode follow."""
        tokens, samples = self.num_tokens, self.num_samples
        prefill = tokens + 2 if self.has_prefill else 0  # 2 a tile; no run of n > 1 has more than n / 2
        at, found = 0, []
        runs = 3 * (self.num_runs + 1)
        for size in (NUM_COUNTS, tokens, tokens, tokens, samples, prefill, runs):
            found.append(slice(at, at + size))
            at += -(-size // ALIGN) * ALIGN
        return [*found, slice(at, None)]

    @property
    def end(self) -> int:
        return int(self.parts[-1].start)


class StepBuffer:
    """The device's integers, and the host's that are copied there."""

    def __init__(self, largest: Layout, max_decode_tiles: int, padding_row: int, device: torch.device) -> None:
        size = largest.end + TILE_INTS * max_decode_tiles
        self._padding_row = padding_row
        self._device = torch.zeros(size, dtype=torch.int32, device=device)
        self._hosts = Hosts(size, device)

    def views(self, layout: Layout) -> StepTensors:
        counts, ids, rows, positions, samples, prefill, runs, decode = (self._device[part] for part in layout.parts)
        return StepTensors(counts, ids, rows, positions, samples, prefill.view(-1, 2), runs.view(3, -1), decode)

    def write(self, plan: StepArrays, layout: Layout) -> None:
        """Enqueues the copy of a plan, padded to the layout."""
        used = layout.end + plan.decode.size
        with self._hosts.filling(used, self._device) as host:
            counts, ids, rows, positions, samples, prefill, runs, decode = (host[part] for part in layout.parts)
            counts[:] = 0
            counts[:4] = len(plan.prefill), len(plan.decode), plan.num_tokens, plan.num_samples
            counts[SPLIT_AT] = plan.split
            _pad(ids, plan.ids, 0)
            _pad(rows, plan.rows, self._padding_row)
            _pad(positions, plan.positions, 0)
            _pad(samples, plan.samples, 0)
            prefill[: plan.prefill.size] = plan.prefill.reshape(-1)
            if layout.num_runs:
                runs[:] = plan.runs.reshape(-1)
            decode[: plan.decode.size] = plan.decode.reshape(-1)


class Hosts:
    """Pinned host memory that is written again only once the copy out of it is done."""

    def __init__(self, size: int, device: torch.device) -> None:
        pinned = device.type == "cuda"
        self._tensors = [torch.zeros(size, dtype=torch.int32, pin_memory=pinned) for _ in range(HOST_BUFFERS)]
        self._copied = [torch.cuda.Event() if pinned else None for _ in range(HOST_BUFFERS)]
        self._turn = 0

    @contextmanager
    def filling(self, used: int, target: Tensor) -> Iterator[Ints]:
        """Yields memory to fill, of which the first `used` are then copied to the target."""
        self._turn = (self._turn + 1) % HOST_BUFFERS
        tensor, copied = self._tensors[self._turn], self._copied[self._turn]
        if copied is not None:
            copied.synchronize()  # of a copy enqueued steps ago: done, but for a device that hangs
        yield tensor.numpy()
        target[:used].copy_(tensor[:used], non_blocking=True)
        if copied is not None:
            copied.record()


def _pad(target: Ints, values: Ints, filler: int) -> None:
    target[: len(values)] = values
    target[len(values) :] = filler
