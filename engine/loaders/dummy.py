"""Seeded random weights for a config.json: tests and benchmarks of any shape without a download."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from engine.loaders.safetensors import read_json
from engine.models.spec import ModelSpec, spec_from_config
from engine.models.weights import allocate, destinations

STD = 0.02  # the usual initialisation of these families


class DummyCheckpoint:
    rope_factors: Tensor | None = None

    def __init__(self, folder: Path, seed: int) -> None:
        self.spec: ModelSpec = spec_from_config(read_json(folder / "config.json"))
        self._seed = seed

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Norms are 1, all else is normal; the same for a seed whatever the order or the device."""
        shapes = destinations(self.spec, allocate(self.spec, torch.float32, torch.device("meta")))
        for index, (name, view) in enumerate(shapes.items()):
            if "norm" in name:
                yield name, torch.ones(view.shape)
                continue
            # The generator looks at 32 bits only: a product spreads the seed over them.
            generator = torch.Generator().manual_seed((self._seed * 0x9E3779B1 + index) & 0xFFFFFFFF)
            yield name, torch.randn(view.shape, generator=generator) * STD

    def ignores(self, name: str) -> bool:
        return False
