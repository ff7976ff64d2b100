"""Safetensors in one file or many: every byte in its place, read by several threads; whatever is broken is named."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.errors import ModelRefused
from engine.loaders import reading
from engine.loaders.checkpoint import open_checkpoint
from engine.loaders.safetensors import INDEX, SafetensorsCheckpoint
from engine.loaders.safetensors_file import SafetensorsFile
from engine.models.weights import allocate, destinations
from tests.engine.test_loaders import CONFIG
from tests.fixtures.harness import CPU, load

SHARDS = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]


def tensors_of(folder: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    checkpoint = open_checkpoint(folder, "dummy", seed=3)
    table = destinations(checkpoint.spec, allocate(checkpoint.spec, dtype, CPU))
    checkpoint.read_into(table, lambda done, total: None)
    return {name: view.clone() for name, view in table.items()}


def write_shards(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    names = sorted(tensors)
    placed = {name: SHARDS[index % len(SHARDS)] for index, name in enumerate(names)}
    for shard in SHARDS:
        own = {name: tensors[name] for name in names if placed[name] == shard}
        save_file(own, folder / shard, metadata={"format": "pt"})
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": placed}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny Llama of three shards, bfloat16."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    write_shards(tmp_path, tensors_of(tmp_path, torch.bfloat16))
    return tmp_path


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("piece", [96, 1 << 20])
def test_shards_hold_what_one_file_holds(
    folder: Path, dtype: torch.dtype, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = load(open_checkpoint(folder, "dummy", seed=3), torch.bfloat16)
    monkeypatch.setattr(reading, "PIECE_BYTES", piece)
    many = load(SafetensorsCheckpoint(folder), dtype)
    for name in (INDEX, *SHARDS):
        (folder / name).unlink()
    save_file(tensors_of(folder, torch.bfloat16), folder / "model.safetensors")
    one = load(SafetensorsCheckpoint(folder), dtype)
    for a, b, c in zip(expected.tensors(), many.tensors(), one.tensors(), strict=True):
        assert torch.equal(a.to(dtype), b)
        assert torch.equal(b, c)


def test_progress_is_told_in_bytes_over_all_shards(folder: Path) -> None:
    checkpoint = SafetensorsCheckpoint(folder)
    table = destinations(checkpoint.spec, allocate(checkpoint.spec, torch.float32, CPU))
    told: list[tuple[int, int]] = []
    checkpoint.read_into(table, lambda done, total: told.append((done, total)))
    size = sum(2 * view.numel() for view in table.values())  # as the files have them
    assert told == sorted(told)
    assert told[-1] == (size, size)


def test_the_places_of_tensors_are_those_that_the_library_knows(folder: Path) -> None:
    for shard in SHARDS:
        data = (folder / shard).read_bytes()
        theirs = load_file(folder / shard)
        ours = SafetensorsFile(folder / shard).tensors
        assert {tensor.name for tensor in ours} == set(theirs)
        for tensor in ours:
            raw = bytearray(data[tensor.offset : tensor.offset + tensor.num_bytes])
            values = torch.frombuffer(raw, dtype=tensor.torch_dtype()).view(tensor.shape)
            assert torch.equal(values, theirs[tensor.name])


def test_a_missing_shard_is_named(folder: Path) -> None:
    (folder / SHARDS[1]).unlink()
    with pytest.raises(ModelRefused, match=f"^{INDEX} names {SHARDS[1]}, which is not in .*$"):
        SafetensorsCheckpoint(folder)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_truncated_shard_is_named(folder: Path, keep: int) -> None:
    path = folder / SHARDS[1]
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelRefused, match=f"^{SHARDS[1]} cannot be read as safetensors, it may be truncated: .*$"):
        SafetensorsCheckpoint(folder)


def test_a_shard_that_shrinks_while_it_is_read_is_named(folder: Path) -> None:
    checkpoint = SafetensorsCheckpoint(folder)
    os.truncate(folder / SHARDS[2], 2000)
    with pytest.raises(ModelRefused, match=f"{SHARDS[2]} has been truncated"):
        load(checkpoint)


def test_a_shard_that_goes_away_before_it_is_read_is_named(folder: Path) -> None:
    checkpoint = SafetensorsCheckpoint(folder)
    (folder / SHARDS[2]).unlink()
    with pytest.raises(ModelRefused, match=f"{SHARDS[2]} cannot be read: No such file"):
        load(checkpoint)


def test_an_index_without_a_tensor_names_the_tensor(folder: Path) -> None:
    path = folder / SHARDS[0]
    tensors = load_file(path)
    name = min(tensors)
    save_file({other: values for other, values in tensors.items() if other != name}, path)
    with pytest.raises(ModelRefused, match=f"lacks 1 tensor: {name}"):
        load(SafetensorsCheckpoint(folder))


def test_quantised_tensors_are_named(folder: Path) -> None:
    path = folder / SHARDS[0]
    tensors = load_file(path)
    name = min(tensors)
    tensors[name] = torch.zeros(tensors[name].shape, dtype=torch.int8)
    save_file(tensors, path)
    with pytest.raises(ModelRefused, match=f"tensor {name} is of type I8; supported: F64, F32, F16, BF16"):
        load(SafetensorsCheckpoint(folder))


def changed(**changes: object) -> Callable[[dict[str, dict[str, object]]], None]:
    return lambda header: header["model.norm.weight"].update(changes)


@pytest.mark.parametrize(
    "change",
    [
        changed(shape=[33]),
        changed(shape=[-32]),
        changed(data_offsets=[64, 0]),
        changed(data_offsets=[-64, 0]),
        changed(data_offsets=[0, 1 << 62]),
        changed(data_offsets=[0]),
        changed(dtype=7),
        lambda header: header.update({"model.norm.weight": {}}),
    ],
)
def test_headers_that_lie_are_refused(folder: Path, change: Callable[[dict[str, dict[str, object]]], None]) -> None:
    path = folder / "broken.safetensors"
    save_file({"model.norm.weight": torch.ones(32, dtype=torch.bfloat16)}, path)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    with pytest.raises(ModelRefused, match=r"^broken\.safetensors cannot be read as safetensors"):
        SafetensorsFile(path)
