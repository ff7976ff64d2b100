"""The GPU's runner against the CPU's, one step ahead of what is known: every way of sampling gives the same tokens.
Where there is no GPU, its kernels run in Triton's interpreter, and no graphs are captured."""

import json
import random
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import kvcache
from engine.cuda.build import Model, make_runner
from engine.cuda.graphs import syncs_forbidden
from engine.cuda.hosted import needs_host
from engine.cuda.runner import CudaRunner
from engine.cuda.sums import Sums
from engine.flights import Executor, Flights
from engine.loaders import checkpoint as checkpoints
from engine.loaders.checkpoint import Checkpoint
from engine.loaders.dummy import DummyCheckpoint
from scheduler.blocks import BlockPool
from scheduler.plan import PromptResult, StepPlan
from scheduler.scheduler import Scheduler
from scheduler.types import Limits, SamplingParams, Sequence
from tests.fixtures.harness import Harness, Loaded, load

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
VOCAB = 131
CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}
LIMITS = Limits(max_seqs=6, max_step_tokens=24, max_model_len=128, block_size=8)
Job = tuple[list[int], SamplingParams]


def captured(checkpoint: Checkpoint, num_blocks: int, sums: Sums | None = None) -> CudaRunner:
    weights: Any = checkpoints.load(checkpoint, torch.float32, DEVICE, lambda *_: None)
    cache = kvcache.allocate(checkpoint.spec, num_blocks, LIMITS.block_size, torch.float32, DEVICE)
    runner = make_runner(Model(checkpoint.spec, weights, None, sums), cache, LIMITS)
    if DEVICE.type == "cuda":
        runner.capture(lambda *_: None)
    return runner


class CudaHarness:
    """Scheduler and runner, as many plans in flight as may be."""

    def __init__(self, folder: Path, num_blocks: int, runner: Executor | None = None) -> None:
        self.runner = runner or captured(DummyCheckpoint(folder, seed=0), num_blocks)
        self.scheduler = Scheduler(LIMITS, BlockPool(num_blocks, LIMITS.block_size), time.monotonic)
        self.flights = Flights(self.runner, time.monotonic)
        self.most_in_flight = 0
        self.may_wait = DEVICE.type != "cuda"  # for the device, while launching
        self.told: dict[int, PromptResult] = {}
        self.logprobs: dict[int, list[Any]] = {}

    def run(self, jobs: list[Job]) -> list[list[int]]:
        seqs = [Sequence(i, params, list(prompt), len(prompt), 0.0) for i, (prompt, params) in enumerate(jobs)]
        for seq in seqs:
            self.scheduler.submit([seq])
        while self.scheduler.has_work or self.flights:
            while self.flights.has_room and (plan := self.scheduler.plan()) is not None:
                self._launch(plan)
            self.most_in_flight = max(self.most_in_flight, len(self.flights))
            landed = self.flights.land()
            assert landed.result is not None, "a step failed"
            for event in self.scheduler.commit(landed.plan, landed.result):
                if event.prompt is not None:
                    self.told[event.seq_id] = event.prompt
                self.logprobs.setdefault(event.seq_id, []).extend(event.logprobs or [])
        self.scheduler.check()
        return [seq.tokens[seq.prompt_len :] for seq in seqs]

    def _launch(self, plan: StepPlan) -> None:
        """Where a step needs nothing of the host, it may not wait for the device."""
        plain = self.runner.ahead and not any(needs_host(admit.params) for admit in plan.admits)
        with syncs_forbidden() if plain and not self.may_wait else nullcontext():
            self.flights.launch(plan)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def on_the_cpu(folder: Path, jobs: list[Job]) -> tuple[list[list[int]], Harness]:
    checkpoint = DummyCheckpoint(folder, seed=0)
    harness = Harness(Loaded(checkpoint, load(checkpoint)), replace(LIMITS, max_seqs=16), num_blocks=200)
    seqs = [
        harness.submit(prompt, **{name: getattr(params, name) for name in params.__struct_fields__})
        for prompt, params in jobs
    ]
    harness.run()
    return [seq.tokens[seq.prompt_len :] for seq in seqs], harness


def jobs_of(changes: list[dict[str, Any]], max_tokens: int = 6) -> list[Job]:
    rng = random.Random(4)
    found = []
    for index, change in enumerate(changes):
        prompt = [rng.randrange(VOCAB) for _ in range((1, 3, 8, 17, 26, 12)[index % 6])]
        found.append(
            (prompt, SamplingParams(**{"max_tokens": max_tokens, "temperature": 0.0, "seed": index, **change}))
        )
    return found


PLAIN: list[dict[str, Any]] = [{}, {"temperature": 0.7}, {}, {"temperature": 1.5}]
FILTERED: list[dict[str, Any]] = [
    {"temperature": 1.0, "top_k": 5},
    {"temperature": 1.2, "top_p": 0.7},
    {"temperature": 0.9, "min_p": 0.5},
    {"temperature": 1.0, "top_k": 40, "top_p": 0.9, "min_p": 0.01},
]
HOSTED: list[dict[str, Any]] = [
    {"presence": 1.5},
    {"repetition": 1.3, "temperature": 0.8},
    {"logit_bias": ((5, 4.0), (9, -100.0))},
    {"allowed_ids": tuple(range(30, 44)), "temperature": 1.0},
    {"bad_words": ((30,), (40, 41)), "temperature": 1.0},
    {"min_tokens": 4, "stop_ids": tuple(range(0, VOCAB, 3)), "temperature": 1.0},
    {"logprobs": 3},
    {"prompt_logprobs": 2},
    {"embed": True, "max_tokens": 0},
]


@pytest.mark.parametrize("kind", ["plain", "filtered", "all"])
def test_tokens_are_those_of_the_cpu(folder: Path, kind: str) -> None:
    jobs = jobs_of({"plain": PLAIN, "filtered": FILTERED, "all": PLAIN[:2] + HOSTED + FILTERED[:1]}[kind])
    expected, _ = on_the_cpu(folder, jobs)
    harness = CudaHarness(folder, num_blocks=100)
    assert harness.run(jobs) == expected
    assert kind == "all" or harness.most_in_flight == 2


def test_what_is_told_is_what_the_cpu_tells(folder: Path) -> None:
    jobs = jobs_of(
        [{"logprobs": 2}, {"prompt_logprobs": 2}, {"embed": True, "max_tokens": 0}, {}, {"prompt_logprobs": 0}]
    )
    _, cpu = on_the_cpu(folder, jobs)
    harness = CudaHarness(folder, num_blocks=100)
    harness.run(jobs)
    assert set(harness.told) == {1, 2, 4}
    assert [len(harness.logprobs.get(index, [])) for index in range(5)] == [6, 0, 0, 0, 0]
    for seq_id, mine in harness.told.items():
        theirs = cpu.told[seq_id + 1]
        for a, b in zip(mine.logprobs or [], theirs.logprobs or [], strict=True):
            assert (a.top_ids, a.rank) == (b.top_ids, b.rank)
            assert [a.logprob, *a.top_logprobs] == pytest.approx([b.logprob, *b.top_logprobs], abs=1e-4)
        if mine.embedding is not None:
            vectors = [torch.frombuffer(bytearray(each.embedding), dtype=torch.float32) for each in (mine, theirs)]
            torch.testing.assert_close(*vectors, rtol=1e-4, atol=1e-5)


def test_preempted_sequences_go_on_unchanged(folder: Path) -> None:
    changes = [*PLAIN, {"temperature": 1.0, "top_k": 9}, {"presence": 1.0}]
    jobs = jobs_of(changes, max_tokens=14)
    expected, _ = on_the_cpu(folder, jobs)
    harness = CudaHarness(folder, num_blocks=12)
    assert harness.run(jobs) == expected
    assert harness.scheduler.stats().preemptions > 0


def test_a_prefix_that_is_found_again_changes_nothing(folder: Path) -> None:
    jobs = jobs_of(PLAIN)
    harness = CudaHarness(folder, num_blocks=100)
    first = harness.run(jobs)
    assert harness.run(jobs) == first
    assert harness.scheduler.stats().prefix_hits > 0


def test_rows_that_need_the_host_are_not_run_ahead_of(folder: Path) -> None:
    harness = CudaHarness(folder, num_blocks=100)
    harness.run(jobs_of([{"presence": 1.0}]))
    assert harness.most_in_flight == 1
    assert not needs_host(SamplingParams(4, temperature=0.7, top_k=4, top_p=0.3, min_p=0.1, stop_ids=(4,)))


def test_a_plan_that_cannot_be_launched_leaves_nothing_behind(folder: Path) -> None:
    harness = CudaHarness(folder, num_blocks=100)
    jobs = jobs_of(PLAIN)
    expected = harness.run(jobs)
    broken = Sequence(99, SamplingParams(4, logit_bias=((VOCAB + 5, 1.0),)), [1, 2, 3], 3, 0.0)
    harness.scheduler.submit([broken])
    plan = harness.scheduler.plan()
    assert plan is not None
    plan.works[0].new_blocks.append(1 << 40)  # no integer that a device takes
    harness.flights.launch(plan)
    landed = harness.flights.land()
    assert landed.result is None
    harness.scheduler.fail(plan)
    assert harness.run(jobs) == expected
