"""A Hugging Face folder: config.json and one or more .safetensors files. Nothing in it is executed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.errors import ModelRefused
from engine.models.spec import ModelSpec, spec_from_config

INDEX = "model.safetensors.index.json"


class SafetensorsCheckpoint:
    rope_factors: Tensor | None = None

    def __init__(self, folder: Path) -> None:
        self.spec: ModelSpec = spec_from_config(read_json(folder / "config.json"))
        self._files = _files(folder)
        for file in self._files:  # a truncated file is found out here, before anything is allocated
            _open(file).__exit__(None, None, None)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        for file in self._files:
            with _open(file) as shard:
                for name in shard.keys():  # noqa: SIM118 (not a dict)
                    yield name, shard.get_tensor(name)

    def ignores(self, name: str) -> bool:
        """Recomputed buffers, and the copy of the embedding that some tied checkpoints carry."""
        return name.endswith("rotary_emb.inv_freq") or (self.spec.tied and name == "lm_head.weight")


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelRefused(f"{path.parent} has no {path.name}") from None
    except (ValueError, OSError) as error:
        raise ModelRefused(f"{path.name} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise ModelRefused(f"{path.name} does not hold a JSON object")
    return content


def _files(folder: Path) -> list[Path]:
    if (folder / INDEX).exists():
        shards = read_json(folder / INDEX).get("weight_map", {})
        files = [folder / name for name in sorted(set(shards.values()))]
        absent = [file.name for file in files if not file.exists()]
        if absent:
            raise ModelRefused(f"{INDEX} names {absent[0]}, which is not in {folder}")
        return files
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelRefused(f"{folder} has no .safetensors files")
    return files


def _open(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ModelRefused(f"{file.name} cannot be read as safetensors, it may be truncated ({error})") from None
