"""One interface over the kinds of checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Protocol

from torch import Tensor

from engine.models.spec import ModelSpec


class Checkpoint(Protocol):
    spec: ModelSpec
    rope_factors: Tensor | None  # divisors of the rotary frequencies that the file itself holds

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """(Hugging Face name, tensor in the file's own or in float32 precision), each once, in file order.

        Raises ModelRefused for a tensor that cannot be read.
        """

    def ignores(self, name: str) -> bool:
        """Whether a tensor without a place in the decoder is harmless."""


def open_checkpoint(path: Path, format: Literal["gguf", "safetensors", "dummy"], seed: int) -> Checkpoint:
    """Reads headers only. Raises ModelRefused, in one line, for what cannot be served."""
    if format == "gguf":
        from engine.loaders.gguf import GgufCheckpoint

        return GgufCheckpoint(path)
    if format == "dummy":
        from engine.loaders.dummy import DummyCheckpoint

        return DummyCheckpoint(path, seed)
    from engine.loaders.safetensors import SafetensorsCheckpoint

    return SafetensorsCheckpoint(path)
