"""The GPU's runner on two ranks against the CPU's alone: plans, draws on every rank, rows that the host has a part in.

Two processes in Triton's interpreter, which share a file's memory in place of NVLink, and gloo in place of NCCL.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

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
from tests.engine.cuda.interpreter import hasten, repair
from tests.engine.cuda.test_runner import CONFIG, CudaHarness, captured, jobs_of, on_the_cpu
from tests.engine.cuda.test_sums import DEADLINE_S, INTERPRETED, links

NUM_BLOCKS = 60
SHALLOW = {**CONFIG, "num_hidden_layers": 1}
CHANGES: list[dict[str, Any]] = [{}, {"temperature": 1.2, "top_p": 0.7}, {"presence": 1.5}]
MAX_TOKENS = 3


def make(setup: RankSetup) -> CudaRunner:
    seat, folder = setup.seat, Path(setup.config.model)
    checkpoint = ShardedCheckpoint(DummyCheckpoint(folder, seed=0), seat.rank, seat.num_ranks)
    group = Group(seat, torch.device("cpu"))
    # Of 4 rows: larger steps take the other way.
    link = links(folder / "inboxes", seat.rank, seat.num_ranks, checkpoint.spec.hidden, torch.float32)
    return captured(checkpoint, NUM_BLOCKS, Sums(group, link))


def fail(loss: Loss) -> None:
    print(loss.message, file=sys.stderr, flush=True)
    os._exit(1)


def lead(folder: Path) -> list[list[int]]:
    """As rank 0, with another one below it."""
    config = EngineConfig(model=str(folder), format="dummy", socket_path=str(folder / "s"), tp=2)
    ranks = Ranks(config, fail, (*COMMAND[:3], "tests.engine.cuda.test_together"))
    try:
        leader = Leader(make(RankSetup(config, ranks.seat, -1)), ranks)
        return CudaHarness(folder, NUM_BLOCKS, leader).run(jobs_of(CHANGES, MAX_TOKENS))
    finally:
        ranks.close()


def test_tokens_are_those_of_one_rank(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SHALLOW))
    command = [sys.executable, "-m", "tests.engine.cuda.test_together", str(tmp_path)]
    with subprocess.Popen(command, env=INTERPRETED, stdout=subprocess.PIPE, text=True) as process:
        expected, _ = on_the_cpu(tmp_path, jobs_of(CHANGES, MAX_TOKENS))
        try:
            told, _ = process.communicate(timeout=DEADLINE_S)
        finally:
            process.kill()
    assert json.loads(told) == expected


if __name__ == "__main__":
    repair()
    hasten()
    if len(sys.argv) == 1:
        main(make)
    print(json.dumps(lead(Path(sys.argv[1]))), flush=True)
    os._exit(0)  # not by way of a group whose other rank is gone
