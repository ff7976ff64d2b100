"""Dummy weights are a function of seed, name and place, the same however they are made."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from engine.loaders import dummy
from engine.loaders.dummy import DummyCheckpoint
from engine.models.weights import allocate, destinations
from engine.noise import row_key
from tests.engine.test_loaders import CONFIG
from tests.fixtures.harness import CPU

NAME = "model.layers.1.mlp.up_proj.weight"
EMBED = "model.embed_tokens.weight"
MASK = np.uint64(0xFFFFFFFF)


@pytest.fixture
def checkpoint(tmp_path: Path) -> DummyCheckpoint:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return DummyCheckpoint(tmp_path, seed=5)


def made(checkpoint: DummyCheckpoint, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    table = destinations(checkpoint.spec, allocate(checkpoint.spec, dtype, CPU))
    checkpoint.read_into(table, lambda done, total: None)
    return table


def specified(seed: int, name: str, count: int) -> NDArray[np.float32]:
    """The module's docstring in unsigned 64-bit numbers and exact float64."""
    low, high = row_key(zlib.crc32(name.encode()), seed)
    x = (np.arange(count, dtype=np.uint64) * np.uint64(high | 1) + np.uint64(low)) & MASK
    x ^= x >> np.uint64(16)
    x = (x * np.uint64(0x7FEB352D)) & MASK
    x ^= x >> np.uint64(15)
    x = (x * np.uint64(0x846CA68B)) & MASK
    x ^= x >> np.uint64(16)
    signed = x.astype(np.uint32).view(np.int32) >> 8
    return ((signed + 0.5) * np.float64(np.float32(0.02 * np.sqrt(12) / 2**24))).astype(np.float32)


@pytest.mark.parametrize("name", [NAME, EMBED])
def test_values_are_those_of_the_specification(checkpoint: DummyCheckpoint, name: str) -> None:
    view = made(checkpoint)[name]
    assert np.array_equal(view.flatten().numpy(), specified(5, name, view.numel()))


@pytest.mark.parametrize("chunk", [1, 100, 1 << 20])
def test_the_size_of_chunks_changes_nothing(
    checkpoint: DummyCheckpoint, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    expected = made(checkpoint)[NAME].clone()
    monkeypatch.setattr(dummy, "CPU_CHUNK", chunk)
    assert torch.equal(made(checkpoint)[NAME], expected)


def test_other_types_are_the_rounded_float32(checkpoint: DummyCheckpoint) -> None:
    assert torch.equal(made(checkpoint, torch.bfloat16)[NAME], made(checkpoint)[NAME].bfloat16())


def test_norms_are_one_and_all_else_spreads_by_a_fiftieth(checkpoint: DummyCheckpoint) -> None:
    for name, view in made(checkpoint).items():
        if "norm" in name:
            assert (view == 1).all()
        else:
            assert abs(view.mean().item()) < 5 * 0.02 / view.numel() ** 0.5
            assert view.std().item() == pytest.approx(0.02, rel=0.1)
            assert view.abs().max().item() <= 0.02 * 3**0.5


def test_tensors_do_not_resemble_each_other(checkpoint: DummyCheckpoint) -> None:
    views = [view.flatten() for name, view in made(checkpoint).items() if view.numel() == 64 * 32]
    assert len(views) == 6
    correlations = torch.corrcoef(torch.stack(views)) - torch.eye(6)
    assert correlations.abs().max() < 5 / (64 * 32) ** 0.5


def test_progress_is_told_in_bytes(checkpoint: DummyCheckpoint) -> None:
    table = destinations(checkpoint.spec, allocate(checkpoint.spec, torch.bfloat16, CPU))
    told: list[tuple[int, int]] = []
    checkpoint.read_into(table, lambda done, total: told.append((done, total)))
    size = sum(view.nbytes for view in table.values())
    assert told[-1] == (size, size)
    assert told == sorted(told)
