"""A Hugging Face folder: config.json and one or more .safetensors files. Nothing in it is executed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from engine.errors import ModelRefused
from engine.loaders.checkpoint import Report, check_names
from engine.loaders.reading import Read, read_all
from engine.loaders.safetensors_file import SafetensorsFile, StoredTensor
from engine.models.family import family_of, read_config
from engine.models.shards import WHOLE, Parts

INDEX = "model.safetensors.index.json"


class SafetensorsCheckpoint:
    rope_factors: Tensor | None = None

    def __init__(self, folder: Path) -> None:
        self.spec: Any = read_config(read_json(folder / "config.json"))
        self._family = family_of(self.spec)
        # A truncated file is found out here, before anything is allocated.
        self._files = [SafetensorsFile(path) for path in _paths(folder)]

    def read_into(self, table: Mapping[str, Tensor], report: Report, parts: Parts = WHOLE) -> None:
        stored = [(self._name(tensor), file.path, tensor) for file in self._files for tensor in file.tensors]
        check_names(table, {name: tensor.shape for name, _, tensor in stored}, self._ignored, parts)
        reads = {  # by name: of a tensor that two files have, the last
            name: Read(path, tensor.offset, tensor.torch_dtype(), table[name], parts.get(name))
            for name, path, tensor in stored
            if name in table
        }
        read_all(list(reads.values()), next(iter(table.values())).device, report)

    def _name(self, tensor: StoredTensor) -> str:
        return tensor.name.removeprefix(self._family.prefix)

    def _ignored(self, name: str) -> bool:
        """Buffers, and the copy of the embedding that some tied checkpoints carry."""
        return self._family.unread(name) or (self.spec.tied and name == "lm_head.weight")


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


def _paths(folder: Path) -> list[Path]:
    if (folder / INDEX).exists():
        shards = read_json(folder / INDEX).get("weight_map", {})
        paths = [folder / name for name in sorted(set(shards.values()))]
        absent = [path.name for path in paths if not path.exists()]
        if absent:
            raise ModelRefused(f"{INDEX} names {absent[0]}, which is not in {folder}")
        return paths
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise ModelRefused(f"{folder} has no .safetensors files")
    return paths
