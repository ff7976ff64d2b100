"""The GPU's runner on two ranks against the CPU's alone: plans, draws on every rank, rows that the host has a part in.

Two processes in Triton's interpreter, which share a file's memory in place of NVLink, and gloo in place of NCCL.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from engine.cuda.runner import CudaRunner
from engine.cuda.sums import Sums
from engine.loaders.dummy import DummyCheckpoint
from engine.loaders.sharded import ShardedCheckpoint
from engine.parallel.group import Group
from engine.parallel.leader import Leader
from engine.parallel.messages import RankSetup
from engine.parallel.rank import main
from engine.parallel.ranks import COMMAND, Loss, Ranks
from scheduler.protocol import EngineConfig
from tests.engine.cuda.interpreter import repair
from tests.engine.cuda.test_runner import CONFIG, FILTERED, HOSTED, PLAIN, CudaHarness, captured, jobs_of, on_the_cpu
from tests.engine.cuda.test_sums import links

NUM_BLOCKS = 60


def make(setup: RankSetup) -> CudaRunner:
    seat, folder = setup.seat, Path(setup.config.model)
    checkpoint = ShardedCheckpoint(DummyCheckpoint(folder, seed=0), seat.rank, seat.num_ranks)
    group = Group(seat, torch.device("cpu"))
    # Of 4 rows: larger steps take the other way.
    link = links(folder / "inboxes", seat.rank, seat.num_ranks, checkpoint.spec.hidden, torch.float32)
    return captured(checkpoint, NUM_BLOCKS, Sums(group, link))


def fail(loss: Loss) -> None:
    raise AssertionError(loss.message)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("model")
    (path / "config.json").write_text(json.dumps(CONFIG))
    return path


@pytest.fixture(scope="module")
def together(folder: Path) -> Iterator[CudaHarness]:
    config = EngineConfig(model=str(folder), format="dummy", socket_path=str(folder / "s"), tp=2)
    ranks = Ranks(config, fail, (*COMMAND[:3], "tests.engine.cuda.test_together"))
    try:
        yield CudaHarness(folder, NUM_BLOCKS, Leader(make(RankSetup(config, ranks.seat, -1)), ranks))
    finally:
        ranks.close()
        dist.destroy_process_group()


@pytest.mark.skipif(torch.cuda.is_available(), reason="two processes cannot share a GPU's memory so")
@pytest.mark.parametrize("kind", ["plain and filtered", "all"])
def test_tokens_are_those_of_one_rank(together: CudaHarness, folder: Path, kind: str) -> None:
    changes: list[dict[str, Any]] = PLAIN[1:] + FILTERED[:2] if kind != "all" else PLAIN[:2] + HOSTED + FILTERED[3:]
    jobs = jobs_of(changes)
    expected, _ = on_the_cpu(folder, jobs)
    assert together.run(jobs) == expected


if __name__ == "__main__":
    repair()
    main(make)
