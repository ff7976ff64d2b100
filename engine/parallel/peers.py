"""What ranks of a tensor-parallel group do together in a forward pass. Each calls the same, in the same order."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Peers(Protocol):
    def sum(self, x: Tensor) -> Tensor:
        """Of all ranks, in place."""

    def join(self, columns: Tensor, width: int) -> Tensor:
        """The columns of all ranks side by side, of which the first `width` count. columns: [rows, n]"""

    def least(self, number: int) -> int:
        """Of all ranks. The host waits."""


class Alone:
    """A group of one."""

    def sum(self, x: Tensor) -> Tensor:
        return x

    def join(self, columns: Tensor, width: int) -> Tensor:
        return columns

    def least(self, number: int) -> int:
        return number


ALONE = Alone()
