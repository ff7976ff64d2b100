"""What kernels read of every row: block table, sampling parameters, last token. Rows are the runner's slots, and one
more that padding tokens belong to.

    words   block tables [rows, max_blocks] | temperature | top_k | top_p | min_p | seed      [rows] each, seeds 2 words
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.cuda.filters import Filters
from engine.cuda.step import ALIGN, Hosts
from scheduler.plan import Admit

PADDING_BLOCK = 1  # padding tokens write their keys there; nobody reads it
PARAMETERS = ("temperature", "top_k", "top_p", "min_p")
MOST_CHANGES = 1 << 16  # that travel at once


class DeviceTables:
    """Changes gather on the host until `flush` enqueues them, in front of the step that needs them."""

    def __init__(self, max_seqs: int, max_blocks: int, device: torch.device) -> None:
        rows = max_seqs + 1
        self.padding_row = max_seqs
        self._max_blocks = max_blocks
        per_row = _aligned(rows)
        at = _aligned(rows * max_blocks)
        self._at = {name: at + per_row * index for index, name in enumerate(PARAMETERS)}
        self._seeds_at = at + 4 * per_row
        self._words = torch.zeros(self._seeds_at + 2 * rows, dtype=torch.int32, device=device)
        self.block_tables = self._words[: rows * max_blocks].view(rows, max_blocks)
        words = {name: self._words[at : at + rows] for name, at in self._at.items()}
        self.temperatures = words["temperature"].view(torch.float32)
        self.filters = Filters(words["top_k"], words["top_p"].view(torch.float32), words["min_p"].view(torch.float32))
        self.seeds = self._words[self._seeds_at :].view(torch.int64)  # the bits of unsigned ones
        self.last_tokens = torch.zeros(rows, dtype=torch.int64, device=device)
        self.block_tables[self.padding_row] = PADDING_BLOCK
        self._num_blocks = [0] * rows
        self._hosts = Hosts(2 * MOST_CHANGES, device)
        self._staged = torch.zeros(2 * MOST_CHANGES, dtype=torch.int32, device=device)
        self._changes: dict[int, int] = {}  # by place among the words

    def admit(self, admit: Admit) -> None:
        params, slot = admit.params, admit.slot
        bits = np.array([params.temperature, params.top_p, params.min_p], np.float32).view(np.int32).tolist()
        for name, value in zip(("temperature", "top_p", "min_p", "top_k"), [*bits, params.top_k], strict=True):
            self._changes[self._at[name] + slot] = value
        seed = np.array([params.seed & 0xFFFFFFFFFFFFFFFF], np.uint64).view(np.int32)
        self._set(self._seeds_at + 2 * slot, seed.tolist())
        self._num_blocks[slot] = 0
        self.extend(slot, admit.blocks)

    def extend(self, slot: int, blocks: list[int]) -> None:
        self._set(slot * self._max_blocks + self._num_blocks[slot], blocks)
        self._num_blocks[slot] += len(blocks)

    def _set(self, place: int, values: list[int]) -> None:
        self._changes.update(zip(range(place, place + len(values)), values, strict=True))

    def flush(self) -> None:
        changes, self._changes = self._changes, {}
        if not changes:
            return
        places, values = (np.fromiter(part, np.int32, len(changes)) for part in (changes.keys(), changes.values()))
        for at in range(0, len(places), MOST_CHANGES):
            self._write(places[at : at + MOST_CHANGES], values[at : at + MOST_CHANGES])

    def _write(self, places: NDArray[np.int32], values: NDArray[np.int32]) -> None:
        count = len(places)
        with self._hosts.filling(2 * count, self._staged) as host:
            host[:count] = places
            host[count : 2 * count] = values
        self._words.index_copy_(0, self._staged[:count].long(), self._staged[count : 2 * count])

    def store(self, slots: Tensor, tokens: Tensor) -> None:
        """Tokens that were drawn elsewhere than in the step itself. Both [n] int64, on the device."""
        self.last_tokens.index_copy_(0, slots, tokens)


def _aligned(size: int) -> int:
    return -(-size // ALIGN) * ALIGN
