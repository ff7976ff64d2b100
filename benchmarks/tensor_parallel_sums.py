"""Sums over ranks, each way that there is: ours, NCCL's, those of torch's symmetric memory; and the gather of logits.

A process a rank. Each way is captured PER_GRAPH times in one graph, as the layers of a model have it, and the graph is
replayed: microseconds of one sum, the median of the replays. What ours gives is compared with NCCL's sum first.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from engine.cuda import sums
from engine.cuda.norm import rms_norm
from engine.models.spec import ModelSpec
from engine.parallel.group import Group
from engine.parallel.messages import Seat

HIDDEN, VOCAB = 4096, 128_256
ROWS = (1, 2, 4, 8, 32, 64, 128, 256)
PER_GRAPH, REPLAYS = 64, 15
EPS = 1e-5
TOLERANCE = 2**-6  # of bfloat16 sums that were rounded in another order

Put = Callable[[str, Any], None]


def measure(store: Path, num_ranks: int, put: Put) -> None:
    """Of rank 0, which starts the others."""
    command = [sys.executable, "-m", "benchmarks.tensor_parallel_sums", str(store), str(num_ranks)]
    others = [subprocess.Popen([*command, str(rank)]) for rank in range(1, num_ranks)]
    try:
        run(Seat(0, num_ranks, str(store)), put)
    finally:
        for other in others:
            try:
                other.wait(20)
            except subprocess.TimeoutExpired:
                other.kill()


def run(seat: Seat, put: Put) -> None:
    device = torch.device("cuda", seat.rank)
    torch.cuda.set_device(device)
    group = Group(seat, device)
    spec = _spec(seat)
    links = sums.link(spec, torch.bfloat16, device)
    put("peer memory", links is not None)
    ways = _Ways(seat, group, links, device)
    for name, way in ways.all().items():
        for rows in ROWS:
            found: object
            try:
                found, failed = way(rows), False
            except Exception as error:  # told, and the other ways go on
                traceback.print_exc()
                found, failed = f"{type(error).__name__}: {error}"[:300], True
            if found is not None:
                put(f"{name}, {rows} rows", found)
            if group.least(int(not failed)) == 0:  # on any rank
                break


def _spec(seat: Seat) -> ModelSpec:
    names: dict[str, Any] = {"architecture": "none", "num_layers": 1, "hidden": HIDDEN, "num_heads": 16}
    names |= {"num_kv_heads": 4, "head_dim": 128, "rotary_dim": 128, "ffn": 7168, "vocab_size": VOCAB}
    names |= {"norm_eps": EPS, "rope_theta": 1e4, "context_length": 4096, "tied": False}
    return ModelSpec(**names, rank=seat.rank, num_ranks=seat.num_ranks)


class _Ways:
    def __init__(self, seat: Seat, group: Group, links: sums.Links | None, device: torch.device) -> None:
        self._seat, self._group, self._links, self._device = seat, group, links, device

    def all(self) -> dict[str, Callable[[int], object]]:
        ours = {"ours is right": self._check, "ours with norm, us": self._ours} if self._links is not None else {}
        return {
            **ours,
            "NCCL, us": self._nccl,
            "NCCL with norm, us": self._nccl_normed,
            "one shot of torch, us": self._one_shot,
            "two shot of torch, us": self._two_shot,
            "gather of logits by NCCL, us": self._gather,
        }

    def _drawn(self, rows: int, seed: int) -> Tensor:
        generator = torch.Generator(self._device).manual_seed(seed)
        return torch.randn(rows, HIDDEN, generator=generator, device=self._device).to(torch.bfloat16)

    def _check(self, rows: int) -> object:
        assert self._links is not None
        if rows > self._links.max_rows:
            return None
        norm = self._drawn(1, 1)[0]
        worst = 0.0
        for turn in range(3):
            partial, residual = self._drawn(rows, 10 * turn + self._seat.rank + 2), self._drawn(rows, 7)
            expected = partial.float()
            dist.all_reduce(expected)
            expected += residual.float()
            out = torch.full_like(residual, float("nan"))
            sums.sum_rows(partial, residual, norm, EPS, out, self._links, overlap=True)
            normed = torch.empty_like(residual)
            rms_norm(residual, norm, EPS, normed)
            differences = (residual.float() - expected).abs().max(), (out.float() - normed.float()).abs().max()
            worst = max(worst, *(float(each) for each in differences))
            same = residual.view(torch.int16).to(torch.int32)
            theirs = same.clone()
            dist.all_reduce(theirs, dist.ReduceOp.MAX)
            assert torch.equal(same, theirs), "ranks have different bits"
        assert worst < 16 * TOLERANCE, worst
        return round(worst, 5)

    def _timed(self, call: Callable[[], object]) -> float:
        call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            for _ in range(PER_GRAPH):
                call()
        times = []
        for _ in range(REPLAYS):
            began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            began.record()
            graph.replay()
            ended.record()
            ended.synchronize()
            times.append(began.elapsed_time(ended))
        return round(statistics.median(times) * 1e3 / PER_GRAPH, 2)

    def _ours(self, rows: int) -> float | None:
        links = self._links
        assert links is not None
        if rows > links.max_rows:
            return None
        norm, partial, residual = self._drawn(1, 1)[0], self._drawn(rows, 2), self._drawn(rows, 3)
        out = torch.empty_like(residual)
        return self._timed(lambda: sums.sum_rows(partial, residual, norm, EPS, out, links, overlap=True))

    def _nccl(self, rows: int) -> float:
        x = torch.zeros(rows, HIDDEN, dtype=torch.bfloat16, device=self._device)
        return self._timed(lambda: self._group.sum(x))

    def _nccl_normed(self, rows: int) -> float:
        x = torch.zeros(rows, HIDDEN, dtype=torch.bfloat16, device=self._device)
        norm, residual, out = self._drawn(1, 1)[0], self._drawn(rows, 3), self._drawn(rows, 4)

        def call() -> None:
            self._group.sum(x)
            residual.add_(x)
            rms_norm(residual, norm, EPS, out)

        return self._timed(call)

    def _one_shot(self, rows: int) -> float:
        return self._of_torch(torch.ops.symm_mem.one_shot_all_reduce, rows)

    def _two_shot(self, rows: int) -> float:
        return self._of_torch(torch.ops.symm_mem.two_shot_all_reduce_, rows)

    def _of_torch(self, operation: Callable[..., object], rows: int) -> float:
        from torch.distributed import _symmetric_memory as symmetric

        world = dist.group.WORLD
        assert world is not None
        x = symmetric.empty(rows, HIDDEN, dtype=torch.bfloat16, device=self._device).zero_()
        symmetric.rendezvous(x, world)
        return self._timed(lambda: operation(x, "sum", world.group_name))

    def _gather(self, rows: int) -> float | None:
        if rows > 64:
            return None
        columns = torch.zeros(rows, VOCAB // self._seat.num_ranks, dtype=torch.bfloat16, device=self._device)
        out = torch.empty(rows, VOCAB, dtype=torch.bfloat16, device=self._device)
        return self._timed(lambda: out.copy_(self._group.join(columns, VOCAB)))


if __name__ == "__main__":
    _, path, size, number = sys.argv
    run(Seat(int(number), int(size), path), lambda name, value: None)
    sys.stdout.flush()
