"""One interface over the kinds of checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from engine.errors import ModelRefused
from engine.models.family import FamilyWeights, family_of
from engine.models.shards import WHOLE, Parts

Report = Callable[[int, int], None]  # bytes done, bytes in all


class Checkpoint(Protocol):
    @property
    def spec(self) -> Any:
        """A Shape, of a type that engine.models.family knows."""

    rope_factors: Tensor | None  # divisors of the rotary frequencies that the file itself holds

    def read_into(self, table: Mapping[str, Tensor], report: Report) -> None:
        """Fills every view of `table` (Hugging Face name -> place of the tensor, contiguous, on any device).

        Raises ModelRefused for a tensor that is missing, unknown, wrongly shaped or cannot be read.
        """


class Divisible(Protocol):
    """A checkpoint of which parts can be read."""

    spec: Any
    rope_factors: Tensor | None

    def read_into(self, table: Mapping[str, Tensor], report: Report, parts: Parts = WHOLE) -> None:
        """As a Checkpoint's. parts: of which tensors a view takes a part only, and which."""


def open_checkpoint(
    path: Path, format: Literal["gguf", "safetensors", "dummy", "rosellm", "nanochat"], seed: int
) -> Checkpoint:
    """Reads headers only. Raises ModelRefused, in one line, for what cannot be served."""
    if format == "gguf":
        from engine.loaders.gguf import GgufCheckpoint

        return GgufCheckpoint(path)
    if format == "dummy":
        from engine.loaders.dummy import DummyCheckpoint

        return DummyCheckpoint(path, seed)
    if format == "rosellm":
        from engine.loaders.rosellm import RosellmCheckpoint

        return RosellmCheckpoint(path)
    if format == "nanochat":
        from engine.loaders.nanochat import NanochatCheckpoint

        return NanochatCheckpoint(path)
    from engine.loaders.safetensors import SafetensorsCheckpoint

    return SafetensorsCheckpoint(path)


def load(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, report: Report) -> FamilyWeights:
    family = family_of(checkpoint.spec)
    weights: FamilyWeights = family.allocate(checkpoint.spec, dtype, device)
    checkpoint.read_into(family.destinations(checkpoint.spec, weights), report)
    family.arrange(checkpoint.spec, weights)
    return weights


def check_names(
    table: Mapping[str, Tensor],
    shapes: Mapping[str, Sequence[int]],
    ignored: Callable[[str], bool],
    parts: Parts = WHOLE,
) -> None:
    """Raises ModelRefused unless the tensors of a file are those of `table`, in name and shape.

    shapes: of all tensors in the file; ignored: those without a place that do no harm.
    """
    for name, shape in shapes.items():
        view = table.get(name)
        if view is None:
            if not ignored(name):
                raise ModelRefused(f"tensor {name} of the checkpoint has no place in this architecture")
            continue
        expected = tuple(parts[name].shape if name in parts else view.shape)
        if expected != tuple(shape):
            raise ModelRefused(f"tensor {name} has shape {list(shape)}, expected {list(expected)}")
    missing = sorted(set(table) - set(shapes))
    if missing:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise ModelRefused(f"the checkpoint lacks {len(missing)} tensor{'s' * (len(missing) > 1)}: {shown}")
