"""Draws from the whole vocabulary on a CPU by the compiled part (engine/native/draw.hpp): the noise of engine.noise,
hashed only for ids that can still win."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.native import library
from engine.noise import MAX_GUMBEL


def draw_pruned(logits: Tensor, temperatures: Tensor, keys: Tensor, variant: str) -> Tensor:
    """As engine.noise.draw."""
    ids: NDArray[np.int64] = np.empty(len(logits), np.int64)
    rows, bits = logits.contiguous(), keys.numpy().astype(np.uint32)
    library.library(variant).headrace_draw(
        *(rows.data_ptr(), temperatures.data_ptr(), bits.ctypes.data),
        *(len(rows), rows.shape[1], MAX_GUMBEL, ids.ctypes.data),
    )
    return torch.from_numpy(ids)
