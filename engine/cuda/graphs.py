"""Which sizes of steps are captured, and their graphs.

A decode step runs as one graph of all its kernels, sampling included; a step with prompts as one graph up to the hidden
states. Larger steps are launched kernel by kernel: there the device is slower than the host.
"""

from __future__ import annotations

import bisect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

MIXED_SIZES = (
    16,
    32,
    64,
    96,
    128,
    192,
    256,
    384,
    512,
    640,
    768,
    896,
    1024,
    1280,
    1536,
    1792,
    2048,
    2560,
    3072,
    3584,
    4096,
)


def decode_sizes(max_seqs: int) -> list[int]:
    """1, 2, 4, 8, 16 .. 256 by 8, then by 32."""
    sizes = [1, 2, 4, *range(8, min(max_seqs, 256) + 1, 8), *range(288, max_seqs + 1, 32)]
    return sorted({size for size in sizes if size < max_seqs} | {max_seqs})


def mixed_sizes(max_step_tokens: int) -> list[int]:
    return [size for size in MIXED_SIZES if size <= max_step_tokens]


class Graphs:
    """Of one kind of step, by size. The first call for each size captures."""

    def __init__(self, sizes: list[int], run: Callable[[int], None]) -> None:
        self.sizes = sizes
        self._run = run
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}

    def size_for(self, needed: int) -> int | None:
        """None: larger than any that is captured."""
        place = bisect.bisect_left(self.sizes, needed)
        return self.sizes[place] if place < len(self.sizes) else None

    def capture(self, pool: Any, done: Callable[[], None]) -> None:
        """Largest first: the smaller ones then fit into the memory of the larger."""
        for size in reversed(self.sizes):
            self._run(size)  # compiles what is new; nothing may be compiled or loaded during a capture
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            # Threads of NCCL may ask after their events meanwhile.
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                self._run(size)
            self._graphs[size] = graph
            done()

    def launch(self, size: int) -> None:
        """Kernel by kernel where it is not captured."""
        graph = self._graphs.get(size)
        if graph is None:
            self._run(size)
        else:
            graph.replay()


@contextmanager
def syncs_forbidden() -> Iterator[None]:
    """Raises where a line inside waits for the device."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it does not find every wait
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
