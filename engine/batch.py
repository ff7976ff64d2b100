"""The tensors that one step's forward pass reads. Built once a step, passed as an argument, never ambient."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, slots=True)
class BatchView:
    """Tokens of all sequences of a step, one after the other: row t of sequence s is at position positions[t].

        q_starts:   0        q_starts[1]            q_starts[2] = num_tokens
        tokens:     |-- s=0 --|------ s=1 ----------|
        positions:  p0 .. p0+n-1 of each sequence, kv_lens[s] = p0+n keys are visible to its last row

    The integer arrays live on the host as numpy (a CPU backend reads them in place); `ids`, `positions`, `slots`,
    `sample_rows` and `prev_ids` are on the device.
    """

    ids: Tensor  # [num_tokens] int64
    positions: Tensor  # [num_tokens] int64
    slots: Tensor  # [num_tokens] int64: block * block_size + offset, where each token's key and value are written
    sample_rows: Tensor  # [num_samples] int64: rows that the next token is sampled from
    q_starts: NDArray[np.int32]  # [num_seqs + 1]
    kv_lens: NDArray[np.int32]  # [num_seqs]
    block_tables: NDArray[np.int32]  # [num_seqs, widest table]; unused entries hold block 0
    prev_ids: Tensor | None = None  # [num_tokens] int64: of the token before each, any at position 0; if the model asks

    @property
    def num_seqs(self) -> int:
        return len(self.kv_lens)
