"""Steps over a paged cache, poisoned wherever nothing may be read, and what attention is by definition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.kvcache import LayerKV

PADDING_TOKENS = 3


@dataclass(frozen=True)
class Shape:
    heads: int
    kv_heads: int
    head_dim: int
    block_size: int = 16
    dtype: torch.dtype = torch.float32

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads


@dataclass(frozen=True)
class Step:
    """Runs of tokens, one row each, then padding tokens. NaN wherever no key or value was written."""

    shape: Shape
    q: Tensor  # [tokens, heads, head_dim], a slice of wider rows
    cache: LayerKV
    rows: Tensor
    positions: Tensor
    block_tables: Tensor
    starts: np.ndarray  # of the runs: first token
    counts: np.ndarray
    kv_lens: np.ndarray  # with the run's own tokens

    @property
    def scale(self) -> float:
        return self.shape.head_dim**-0.5

    @property
    def num_tokens(self) -> int:
        return int(self.counts.sum())

    def out(self) -> Tensor:
        return torch.full(self.q.shape, torch.nan, dtype=self.q.dtype, device=self.q.device)


def random_step(shape: Shape, runs: list[tuple[int, int]], device: torch.device, seed: int = 0) -> Step:
    """runs: tokens of each and the keys that its last one sees."""
    rng = np.random.default_rng(seed)
    generator = torch.Generator(device).manual_seed(seed)
    counts, kv_lens = (np.array(column, np.int32) for column in zip(*runs, strict=True))
    sizes = -(-kv_lens // shape.block_size)
    free = rng.permutation(int(sizes.sum())).astype(np.int32) + 2
    rows = rng.permutation(len(runs)).astype(np.int32)
    tables = np.zeros((len(runs) + 1, int(sizes.max())), np.int32)  # the last row is the padding's
    tables[-1] = 1
    for row, size, end in zip(rows, sizes, np.cumsum(sizes), strict=True):
        tables[row, :size] = free[end - size : end]
    positions = np.concatenate([np.arange(kv - n, kv) for n, kv in runs] + [np.zeros(PADDING_TOKENS)])

    def ints(values: Any) -> Tensor:
        return torch.tensor(np.asarray(values, np.int32), device=device)

    def side() -> Tensor:
        places = (int(sizes.sum()) + 2, shape.kv_heads, shape.block_size, shape.head_dim)
        found = torch.randn(places, generator=generator, device=device).to(shape.dtype)
        found[:2] = torch.nan
        for row, size, kv_len in zip(rows, sizes, kv_lens, strict=True):
            found[tables[row, size - 1], :, (kv_len - 1) % shape.block_size + 1 :] = torch.nan
        return found

    width = shape.heads * shape.head_dim
    tokens = len(positions)
    qkv = torch.randn(tokens, width + 32, generator=generator, device=device).to(shape.dtype)
    q = qkv[:, :width].view(tokens, shape.heads, shape.head_dim)
    all_rows = np.concatenate([np.repeat(rows, counts), np.full(PADDING_TOKENS, len(runs))])
    starts = np.cumsum(counts) - counts
    return Step(
        shape, q, LayerKV(side(), side()), ints(all_rows), ints(positions), ints(tables), starts, counts, kv_lens
    )


def expected(step: Step, window: int | None, rounding: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
    """[tokens without padding, heads, head_dim] in float64. `rounding` is put on weights and results, which is what the
    best kernel of a narrow type does to them."""
    shape = step.shape
    found = []
    for start, count, kv_len in zip(step.starts.tolist(), step.counts.tolist(), step.kv_lens.tolist(), strict=True):
        blocks = step.block_tables[step.rows[start], : -(-kv_len // shape.block_size)].long()
        keys, values = (_gather(side, blocks, kv_len, shape.group) for side in (step.cache.keys, step.cache.values))
        scores = torch.einsum("thd,hjd->htj", step.q[start : start + count].double(), keys) * step.scale
        behind = torch.arange(kv_len - count, kv_len)[:, None] - torch.arange(kv_len)[None, :]
        hidden = (behind < 0) | (behind >= (window or kv_len))
        scores = scores.masked_fill(hidden.to(scores.device), -torch.inf)
        weights = (scores - scores.amax(-1, keepdim=True)).exp()
        sums = torch.einsum("htj,hjd->htd", rounding(weights), values) / weights.sum(-1, keepdim=True)
        found.append(rounding(sums.transpose(0, 1)))
    return torch.cat(found)


def _gather(side: Tensor, blocks: Tensor, kv_len: int, group: int) -> Tensor:
    """[heads, kv_len, head_dim]"""
    flat = side[blocks].double().transpose(0, 1).flatten(1, 2)[:, :kv_len]
    return flat.repeat_interleave(group, 0)


def check(step: Step, out: Tensor, window: int | None) -> None:
    """float32: within the rounding of its sums. Narrower types: hardly further from the truth than that, rounded."""
    exact, out = expected(step, window), out[: step.num_tokens].double()
    error = (out - exact).norm() / exact.norm()
    if step.shape.dtype == torch.float32:
        assert error < 5e-7
        assert (out - exact).abs().max() < 4e-6
        return
    rounded = expected(step, window, lambda x: x.to(step.shape.dtype).double())
    allowed = (rounded - exact).norm() / exact.norm()
    assert error <= 1.3 * allowed, (float(error), float(allowed))
