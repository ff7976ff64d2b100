"""Decode attention against its definition in float64."""

import numpy as np
import pytest
import torch

from engine.cuda import attention
from engine.cuda import tiles as tiles_of
from engine.cuda.rope import rope_write
from engine.kvcache import LayerKV
from tests.engine.cuda.paged import Shape, Step, check, random_step

SHAPES = [
    Shape(4, 4, 64, 16),
    Shape(4, 2, 128, 32),
    Shape(9, 3, 64, 16),
    Shape(8, 2, 96, 16),
    Shape(14, 2, 64, 64),
    Shape(8, 1, 128, 16),
]
CONTEXTS = [1, 15, 16, 17, 64, 65, 255, 256, 257, 512, 600]
NARROW = [torch.bfloat16, torch.float16]


def decode(step: Step, window: int | None = None, split: int = 0, times: int = 1) -> torch.Tensor:
    """Attends all runs, of one token each, and leaves the counters as they were."""
    device, shape = step.q.device, step.shape
    rows = step.rows[: len(step.starts)].cpu().numpy()  # of runs of one token
    tiles = torch.from_numpy(tiles_of.decode_tiles(step.starts, rows, step.kv_lens, split or tiles_of.SPLIT)).to(device)
    space = attention.workspace(len(tiles), len(step.q), shape.heads, shape.kv_heads, shape.head_dim, device)
    counts = torch.tensor([0, len(tiles), 0, 0, split, 0, 0, 0], dtype=torch.int32, device=device)
    paged = (step.q, step.cache, step.block_tables)
    outs = [step.out() for _ in range(times)]
    for out in outs:
        for leftover in (space.sums, space.highest, space.totals):
            leftover.fill_(torch.nan)
        attention.decode_attention(*paged, tiles, counts, out, space, step.scale, window)
        assert not space.arrived.any()
    assert all(torch.equal(out[: step.num_tokens], outs[0][: step.num_tokens]) for out in outs)
    assert outs[0][step.num_tokens :].isnan().all()  # padding has no tile
    return outs[0]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_contexts_around_blocks_and_splits(shape: Shape, device: torch.device) -> None:
    step = random_step(shape, [(1, kv_len) for kv_len in CONTEXTS[:: 1 if shape.heads < 9 else 3]], device)
    check(step, decode(step, times=2), None)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[2]], ids=str)
def test_narrow_types(shape: Shape, dtype: torch.dtype, device: torch.device) -> None:
    narrow = Shape(shape.heads, shape.kv_heads, shape.head_dim, shape.block_size, dtype)
    step = random_step(narrow, [(1, 3), (1, 300), (1, 130)], device, seed=1)
    check(step, decode(step, times=2), None)


@pytest.mark.parametrize("window", [1, 16, 100, 256, 300, 5000])
def test_windows(window: int, device: torch.device) -> None:
    step = random_step(SHAPES[1], [(1, kv_len) for kv_len in (1, 100, 101, 512, 555, 770)], device, seed=2)
    check(step, decode(step, window, times=2), window)


@pytest.mark.parametrize("split", [16, 64, 128, 1024])
def test_a_step_may_choose_its_splits(split: int, device: torch.device) -> None:
    step = random_step(SHAPES[1], [(1, 1), (1, 500), (1, 64), (1, 129)], device, seed=3)
    check(step, decode(step, split=split), None)
    check(step, decode(step, 50, split=split), 50)


def test_a_result_does_not_depend_on_what_else_is_decoded(device: torch.device) -> None:
    step = random_step(SHAPES[1], [(1, 300), (1, 1), (1, 600)], device, seed=4)
    together = decode(step)
    for index in range(3):
        kept = slice(index, index + 1)
        alone = Step(
            step.shape,
            step.q[kept],
            step.cache,
            step.rows[kept],
            step.positions[kept],
            step.block_tables,
            np.zeros(1, np.int64),
            step.counts[kept],
            step.kv_lens[kept],
        )
        assert torch.equal(decode(alone)[0], together[index])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("shape", "normed", "rotates"),
    [(SHAPES[1], True, True), (SHAPES[3], False, True), (SHAPES[2], True, False)],
    ids=str,
)
def test_fresh_heads_are_those_of_a_kernel_before(
    shape: Shape, normed: bool, rotates: bool, dtype: torch.dtype, device: torch.device
) -> None:
    """Norm, rope and writing to the cache, in the attention kernel or ahead of it."""
    shape = Shape(shape.heads, shape.kv_heads, shape.head_dim, shape.block_size, dtype)
    kv_lens = [1, 16, 17, 256, 257, 600]
    step = random_step(shape, [(1, kv_len) for kv_len in kv_lens], device, seed=5)
    width, tokens = shape.heads * shape.head_dim, len(step.q)
    qkv = torch.randn(tokens, width + 2 * shape.kv_heads * shape.head_dim, device=device).to(dtype)
    cos, sin = torch.rand(2, 700, shape.head_dim // 2, device=device).unbind()
    norms = [torch.randn(shape.head_dim, device=device).to(dtype) if normed else None for _ in range(2)]
    rows = step.rows[: len(kv_lens)].cpu().numpy()
    tiles = torch.from_numpy(tiles_of.decode_tiles(step.starts, rows, step.kv_lens)).to(device)
    space = attention.workspace(len(tiles), tokens, shape.heads, shape.kv_heads, shape.head_dim, device)
    counts = torch.tensor([0, len(tiles), 0, 0, 0, 0, 0, 0], dtype=torch.int32, device=device)
    found = []
    for fused in (False, True):
        cache = LayerKV(step.cache.keys.clone(), step.cache.values.clone())
        for row, kv_len in zip(rows.tolist(), kv_lens, strict=True):  # not there yet
            block = step.block_tables[row, (kv_len - 1) // shape.block_size]
            cache.keys[block, :, (kv_len - 1) % shape.block_size] = torch.nan
        given, out = qkv.clone(), step.out()
        q = given[:, :width].view(tokens, shape.heads, shape.head_dim)
        if not fused:
            kept = (given[: len(kv_lens)], step.rows[: len(kv_lens)], step.positions[: len(kv_lens)])
            rope_write(*kept, step.block_tables, cache, cos, sin, *norms, 1e-6, rotates)
        rope = attention.Rope(cos, sin, *norms, 1e-6, rotates) if fused else None
        attention.decode_attention(q, cache, step.block_tables, tiles, counts, out, space, step.scale, None, rope)
        found.append((out[: len(kv_lens)], cache.keys, cache.values))
    exact = 1e-5 if dtype == torch.float32 else 2**-7
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=exact, atol=exact, equal_nan=True)


def test_nothing_to_decode(device: torch.device) -> None:
    step = random_step(SHAPES[0], [(1, 5)], device)
    space = attention.workspace(1, len(step.q), 4, 4, 64, device)
    none = torch.zeros(8, dtype=torch.int32, device=device)
    paged = (step.q, step.cache, step.block_tables)
    out = step.out()
    attention.decode_attention(*paged, torch.zeros(8).int().to(device), none, out, space, step.scale, None)
    assert out.isnan().all()


def test_tiles_with_most_keys_come_first_and_know_their_first_split() -> None:
    tiles = tiles_of.decode_tiles(np.array([4, 7, 2]), np.array([0, 5, 9]), np.array([100, 513, 256]), 256)
    assert tiles[:, :5].tolist() == [
        [7, 5, 513, 0, 1],
        [7, 5, 513, 1, 1],
        [2, 9, 256, 0, 4],
        [4, 0, 100, 0, 0],
        [7, 5, 513, 2, 1],
    ]
    empty = np.array([], int)
    assert tiles_of.decode_tiles(empty, empty, empty).shape == (0, tiles_of.TILE_INTS)


def test_many_keys_are_cut_into_larger_tiles() -> None:
    def split(sequences: int, keys: int, max_tiles: int = 1 << 20) -> int:
        return tiles_of.split_for(np.full(sequences, keys, np.int32), 8, max_tiles)

    assert split(1, 400) == tiles_of.SPLIT // 2
    assert split(16, 900) == tiles_of.SPLIT
    assert split(64, 900) == 2 * tiles_of.SPLIT
    assert split(128, 900) == 4 * tiles_of.SPLIT
    assert split(256, 900) == 8 * tiles_of.SPLIT
    assert split(256, 9000, max_tiles=256 * 2) == 32 * tiles_of.SPLIT
