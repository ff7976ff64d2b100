"""Prefill attention against its definition in float64."""

import numpy as np
import pytest
import torch

from engine.cuda import prefill
from engine.cuda import tiles as tiles_of
from tests.engine.cuda.paged import Shape, Step, check, random_step

SHAPES = [
    Shape(2, 2, 64, 16),
    Shape(4, 2, 128, 32),
    Shape(6, 2, 64, 16),
    Shape(4, 1, 96, 16),
    Shape(7, 1, 64, 64),
    Shape(8, 1, 128, 16),
]
# (tokens, keys): whole prompts, chunks behind a prefix, a single token, a prefix that ends inside a block
RUNS = [(1, 1), (63, 63), (64, 128), (5, 70), (1, 200), (40, 170)]


def attend(step: Step, window: int | None = None, rows: int = 0) -> torch.Tensor:
    rows = rows or tiles_of.tile_rows(step.shape.group, step.shape.dtype)
    device = step.q.device
    positions = step.kv_lens - step.counts
    tiles = tiles_of.prefill_tiles(step.starts, step.counts, positions, step.shape.group, rows)
    counts = torch.tensor([len(tiles), 0, 0, 0, 0, 0, 0, 0], dtype=torch.int32, device=device)
    paged = (step.q, step.cache, step.rows, step.positions, step.block_tables)
    out = step.out()
    prefill.prefill_attention(
        *paged, torch.from_numpy(tiles).to(device), counts, out, step.scale, window, rows_of_tile=rows
    )
    assert out[step.num_tokens :].isnan().all()  # padding has no tile
    return out


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_prompts_and_chunks(shape: Shape, device: torch.device) -> None:
    step = random_step(shape, RUNS, device)
    check(step, attend(step), None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[2]], ids=str)
def test_narrow_types(shape: Shape, dtype: torch.dtype, device: torch.device) -> None:
    narrow = Shape(shape.heads, shape.kv_heads, shape.head_dim, shape.block_size, dtype)
    step = random_step(narrow, [(70, 70), (33, 190)], device, seed=1)
    check(step, attend(step), None)


@pytest.mark.parametrize("window", [1, 2, 64, 65, 100, 128, 5000])
def test_windows(window: int, device: torch.device) -> None:
    step = random_step(SHAPES[1], [(130, 260), (70, 70), (1, 300)], device, seed=2)
    check(step, attend(step, window), window)


@pytest.mark.parametrize("prefix", [62, 63, 64, 65])
def test_prefixes_around_a_turn(prefix: int, device: torch.device) -> None:
    step = random_step(SHAPES[5], [(17, prefix + 17), (2, prefix + 2)], device, seed=3)
    check(step, attend(step), None)


def test_nothing_to_prefill(device: torch.device) -> None:
    step = random_step(SHAPES[0], [(3, 5)], device)
    none = torch.zeros(8, dtype=torch.int32, device=device)
    paged = (step.q, step.cache, step.rows, step.positions, step.block_tables)
    out = step.out()
    prefill.prefill_attention(*paged, torch.zeros(1, 2).int().to(device), none, out, step.scale, None)
    assert out.isnan().all()


def test_tiles_cover_each_token_once_and_the_longest_come_first() -> None:
    tiles = tiles_of.prefill_tiles(np.array([3, 50]), np.array([40, 70]), np.array([500, 0]), 4, 128)
    assert tiles.tolist() == [[35, 8], [3, 32], [114, 6], [82, 32], [50, 32]]
    empty = np.array([], int)
    assert tiles_of.prefill_tiles(empty, empty, empty, 4, 128).shape == (0, 2)
