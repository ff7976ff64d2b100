"""Two ranks under gloo against one process, in float32: tokens of every way of sampling, whatever the scheduler does.
The first rank is this process."""

import random
import re
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from llguidance import LLMatcher

from engine import kvcache
from engine.build import Phases, build
from engine.errors import ModelRefused
from engine.flights import Executor
from engine.grammar import Compiler
from engine.models import shards
from engine.models.nanochat_spec import SIZES as NANOCHAT_SIZES
from engine.models.nanochat_spec import spec_from_meta
from engine.models.spec import ModelSpec, spec_from_config
from engine.parallel.leader import Leader
from engine.parallel.ranks import Loss, Ranks
from scheduler.plan import TokenLogprob
from scheduler.protocol import EngineConfig, Vocabulary
from scheduler.scheduler import Scheduler
from scheduler.types import SamplingParams, Sequence
from tests.fixtures.small_models import save_small_model

VOCAB = 151  # odd: the ranks hold 76 and 75
LIMITS: dict[str, Any] = {"max_seqs": 16, "max_step_tokens": 24, "max_model_len": 96, "block_size": 8}
NUM_BLOCKS = 22  # for half of what runs at the same time
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"architectures": ["LlamaForCausalLM"], "attention_bias": True, "mlp_bias": True},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "head_dim": 16, "tie_word_embeddings": True},
    "qwen2, one kv head": {"architectures": ["Qwen2ForCausalLM"], "num_key_value_heads": 1},
}
VOCABULARY = Vocabulary([bytes([number]) for number in range(VOCAB - 1)] + [b"<end>"], [VOCAB - 1], [VOCAB - 1])
GRAMMAR = LLMatcher.grammar_from_regex("[a-z]{3}-[0-9]+")
WARM: dict[str, Any] = {"temperature": 1.0}
CHANGES: list[dict[str, Any]] = [
    {},
    {},
    {},
    {"temperature": 0.8},
    {**WARM, "top_p": 0.8, "top_k": 30},
    {"logprobs": 3},
    {**WARM, "logprobs": 1},
    {"repetition": 1.3, "presence": 0.5},
    {**WARM, "grammar": GRAMMAR},
    {**WARM, "logit_bias": ((7, 3.0),), "bad_words": ((8,), (9, 10))},
]
PROMPT_LENGTHS = (1, 5, 61, 17, 26, 33)
Job = tuple[list[int], SamplingParams]


def jobs() -> list[Job]:
    rng = random.Random(6)
    plain = {"max_tokens": 16, "temperature": 0.0}
    return [
        (
            [rng.randrange(VOCAB) for _ in range(PROMPT_LENGTHS[index % len(PROMPT_LENGTHS)])],
            SamplingParams(**{**plain, "seed": index, **change}),
        )
        for index, change in enumerate(CHANGES)
    ]


@dataclass
class Engine:
    scheduler: Scheduler
    executor: Executor
    compiler: Compiler = field(default_factory=lambda: Compiler(VOCABULARY, VOCAB))
    logprobs: dict[int, list[TokenLogprob]] = field(default_factory=dict)
    num_chunks: int = 0  # of prompts that go on in the next step
    num_submitted: int = 0

    def run(self, asked: list[Job]) -> list[list[int]]:
        """Until all have ended."""
        seqs = [self._sequence(prompt, params) for prompt, params in asked]
        while self.scheduler.has_work:
            plan = self.scheduler.plan()
            assert plan is not None
            self.num_chunks += sum(not work.sample for work in plan.works)
            self.executor.launch(plan)
            for event in self.scheduler.commit(plan, self.executor.finish()):
                self.logprobs.setdefault(event.seq_id, []).extend(event.logprobs or [])
        self.scheduler.check()
        return [seq.tokens[seq.prompt_len :] for seq in seqs]

    def _sequence(self, prompt: list[int], params: SamplingParams) -> Sequence:
        self.num_submitted += 1
        seq = Sequence(self.num_submitted, params, list(prompt), len(prompt), time.monotonic())
        if params.grammar is not None:
            self.executor.matchers.assign(seq.id, self.compiler.compile(params.grammar))
        self.scheduler.submit([seq])
        return seq


def spec_of(name: str) -> ModelSpec:
    return spec_from_config({**SIZES, **CONFIGS[name]})


def config_of(name: str, folder: Path, tp: int) -> EngineConfig:
    own = shards.share(spec_of(name), 0, tp)
    size = NUM_BLOCKS * kvcache.block_bytes(own, LIMITS["block_size"], torch.float32)
    where: dict[str, Any] = {"model": str(folder), "format": "safetensors", "socket_path": str(folder / "s")}
    return EngineConfig(**where, device="cpu", dtype="float32", threads=tp, tp=tp, kv_cache_bytes=size, **LIMITS)


def fail(loss: Loss) -> None:
    raise AssertionError(loss.message)


@pytest.fixture(scope="module", params=CONFIGS)
def engines(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Engine, Engine]]:
    """Of one process, and of two."""
    folder = tmp_path_factory.mktemp("model")
    save_small_model({**SIZES, **CONFIGS[request.param]}, folder)
    phases = Phases(lambda *_: None)
    config = config_of(request.param, folder, 2)
    with closing(Ranks(config, fail)) as ranks:  # the other one starts meanwhile
        scheduler, runner, ready = build(config_of(request.param, folder, 1), phases)
        one = Engine(scheduler, runner)
        scheduler, runner, shared = build(config, phases, ranks.seat)
        assert (shared.num_blocks, shared.num_parameters) == (NUM_BLOCKS, ready.num_parameters)
        assert shared.weights_bytes < 0.6 * ready.weights_bytes
        yield one, Engine(scheduler, Leader(runner, ranks))
    dist.destroy_process_group()


def test_tokens_are_those_of_one_process(engines: tuple[Engine, Engine]) -> None:
    one, two = engines
    expected = one.run(jobs())
    assert two.run(jobs()) == expected
    assert all(len(set(answer)) > 8 for answer in expected[:3]), "greedy ones do not go in circles"
    assert re.fullmatch(b"[a-z]{3}-[0-9]+", b"".join(VOCABULARY.tokens[token] for token in expected[8][:5]))
    assert two.num_chunks > 0 and two.scheduler.stats().preemptions > 0
    for index in (5, 6):
        mine, theirs = two.logprobs[index + 1], one.logprobs[index + 1]
        assert len(mine) == 16
        for a, b in zip(mine, theirs, strict=True):
            assert a.top_ids == b.top_ids
            assert [a.logprob, *a.top_logprobs] == pytest.approx([b.logprob, *b.top_logprobs], abs=1e-3)


def test_a_prefix_that_is_found_again_changes_nothing(engines: tuple[Engine, Engine]) -> None:
    some = jobs()[2:4]
    expected = engines[0].run(some)
    two = engines[1]
    assert two.run(some) == expected
    before = two.scheduler.stats().prefix_hits
    assert two.run(some) == expected
    assert two.scheduler.stats().prefix_hits - before >= 56 + 16, "all full blocks of both prompts"


@pytest.mark.parametrize(
    ("change", "tp", "message"),
    [
        ({"num_heads": 6, "num_kv_heads": 2}, 4, "does not divide 6 attention heads"),
        ({"ffn": 81}, 2, "81 columns"),
        ({"num_heads": 6, "num_kv_heads": 3}, 2, "3 heads of keys and values"),
        ({"vocab_size": 5}, 4, "a vocabulary of 5"),
    ],
)
def test_what_cannot_be_divided_is_refused(change: dict[str, int], tp: int, message: str) -> None:
    with pytest.raises(ModelRefused, match=message):
        shards.share(replace(spec_of("llama"), **change), 0, tp)


def test_nanochat_is_refused() -> None:
    spec = spec_from_meta(dict.fromkeys(NANOCHAT_SIZES, 4) | {"n_head": 2, "n_kv_head": 2}, {})
    with pytest.raises(ModelRefused, match=r"--tp 2 does not divide nanochat, only models of the Llama family"):
        shards.share(spec, 0, 2)
