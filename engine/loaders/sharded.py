"""A checkpoint as one rank of a tensor-parallel group sees it: its own part, and nothing else in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from torch import Tensor

from engine.loaders.checkpoint import Checkpoint, Divisible, Report
from engine.models import shards
from engine.models.spec import ModelSpec


class ShardedCheckpoint:
    """Raises ModelRefused where the model cannot be divided so."""

    def __init__(self, checkpoint: Checkpoint, rank: int, num_ranks: int) -> None:
        whole = checkpoint.spec
        self.spec: ModelSpec = shards.share(whole, rank, num_ranks)
        self.rope_factors = checkpoint.rope_factors
        self._checkpoint = cast(Divisible, checkpoint)  # all that hold a Llama are
        self._parts = shards.parts(whole, self.spec)

    def read_into(self, table: Mapping[str, Tensor], report: Report) -> None:
        self._checkpoint.read_into(
            {name: self._filled(name, view) for name, view in table.items()}, report, self._parts
        )

    def _filled(self, name: str, view: Tensor) -> Tensor:
        """Without the rows that stand for no id: those are zero."""
        part = self._parts.get(name)
        if part is None or part.dim:
            return view
        num_rows = sum(end - start for start, end in part.ranges)
        view[num_rows:] = 0
        return view[:num_rows]
