"""The group by torch.distributed: NCCL between GPUs, gloo between processes of CPUs. All ranks are on one machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from engine.parallel.messages import Seat

# Far more than any step takes: who is gone is found out otherwise (engine/parallel/ranks.py), and its group killed.
TIMEOUT = timedelta(minutes=10)
_all_gather: Callable[..., object] = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"


class Group:
    def __init__(self, seat: Seat, device: torch.device) -> None:
        """Waits for all ranks."""
        self._seat = seat
        self._device = device
        os.environ.setdefault("GLOO_SOCKET_IFNAME", LOOPBACK)
        store = dist.FileStore(seat.store, seat.num_ranks)  # type: ignore[attr-defined]
        on_gpus = device.type == "cuda"
        dist.init_process_group(
            "nccl" if on_gpus else "gloo",
            store=store,
            rank=seat.rank,
            world_size=seat.num_ranks,
            timeout=TIMEOUT,
            device_id=device if on_gpus else None,
        )
        self.least(0)  # all are here

    @property
    def rank(self) -> int:
        return self._seat.rank

    @property
    def num_ranks(self) -> int:
        return self._seat.num_ranks

    def sum(self, x: Tensor) -> Tensor:
        dist.all_reduce(x)
        return x

    def join(self, columns: Tensor, width: int) -> Tensor:
        rows, count = columns.shape
        gathered = columns.new_empty(self.num_ranks * rows, count)
        _all_gather(gathered, columns.contiguous())
        return gathered.view(self.num_ranks, rows, count).transpose(0, 1).reshape(rows, -1)[:, :width].contiguous()

    def least(self, number: int) -> int:
        value = torch.tensor([number], dtype=torch.int64, device=self._device)
        dist.all_reduce(value, dist.ReduceOp.MIN)
        return int(value.item())  # at start only

    def leave(self) -> None:
        """Where the process goes on, as tests do. A rank that ends just ends: to part from peers that are gone may
        take for ever."""
        dist.destroy_process_group()
