"""Draws from the whole vocabulary on a CPU: the noise of engine.noise, hashed only for ids that can still win."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit, prange
from numpy.typing import NDArray
from torch import Tensor

from engine.jit import kernel
from engine.noise import MAX_GUMBEL, MIX_1, MIX_2


def draw_pruned(logits: Tensor, temperatures: Tensor, keys: Tensor) -> Tensor:
    """As engine.noise.draw."""
    out = np.empty(logits.shape[0], np.int64)
    bits = keys.numpy().astype(np.uint32)
    _draw_pruned(logits.contiguous().numpy(), temperatures.numpy(), bits, MAX_GUMBEL, out)
    return torch.from_numpy(out)


@njit(inline="always")
def _mix_scalar(x: Any) -> Any:
    x ^= x >> np.uint32(16)
    x = np.uint32(x * np.uint32(MIX_1))
    x ^= x >> np.uint32(15)
    x = np.uint32(x * np.uint32(MIX_2))
    return np.uint32(x ^ (x >> np.uint32(16)))


@njit
def _score(scaled: Any, token: Any, low: Any, high: Any) -> Any:
    h = _mix_scalar(np.uint32(_mix_scalar(np.uint32(token) ^ low) + high))
    u = (np.float64(h) + 0.5) * 2.0**-32
    return scaled + np.float32(-np.log(-np.log(u)))


@kernel(parallel=True, exact=True)
def _draw_pruned(
    logits: NDArray[np.float32],
    temperatures: NDArray[np.float32],
    keys: NDArray[np.uint32],
    max_gumbel: float,
    out: NDArray[np.int64],
) -> None:
    """Starts from the most likely id, and hashes only ids that could still beat the best score so far."""
    rows, vocab = logits.shape
    for row in prange(rows):
        temperature, low, high = temperatures[row], keys[row, 0], keys[row, 1]
        best_id = 0
        for token in range(vocab):
            if logits[row, token] > logits[row, best_id]:
                best_id = token
        best = _score(np.float32(logits[row, best_id] / temperature), best_id, low, high)
        floor = best - np.float32(max_gumbel)
        for token in range(vocab):
            scaled = np.float32(logits[row, token] / temperature)
            if scaled < floor:
                continue
            score = _score(scaled, token, low, high)
            if score > best or (score == best and token < best_id):
                best, best_id = score, token
                floor = best - np.float32(max_gumbel)
        out[row] = best_id
