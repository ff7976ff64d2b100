"""nanochat's checkpoints of every generation: logits of the oracle, and nanochat's own greedy ids, whatever goes on."""

import json
import random
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from engine import build as engine_build
from engine import kvcache
from engine.attention.base import AttentionBackend
from engine.attention.paged_numba import NumbaAttention
from engine.attention.reference import ReferenceAttention
from engine.attention.sdpa import SdpaAttention
from engine.batch import BatchView
from engine.errors import ModelRefused
from engine.loaders.checkpoint import load
from engine.loaders.nanochat import NanochatCheckpoint
from engine.models.family import num_parameters
from engine.models.nanochat import NanochatDecoder
from engine.rows import RowTable
from engine.runner import Runner
from scheduler.protocol import EngineConfig
from scheduler.scheduler import Scheduler
from scheduler.types import Limits
from tests.fixtures import nanochat
from tests.fixtures.harness import CPU, Harness
from tests.fixtures.nanochat import CONTEXT, ERAS, NEW_TOKENS, PROMPTS, VOCAB, oracle_logits, stored_ids

LIMITS = Limits(max_seqs=8, max_step_tokens=512, max_model_len=CONTEXT, block_size=16)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("nanochat")
    return {name: nanochat.save(base, era, tag=name) for name, era in ERAS.items()}


@pytest.fixture(scope="module", params=ERAS)
def name(request: pytest.FixtureRequest) -> str:
    era: str = request.param
    return era


@pytest.fixture(scope="module")
def checkpoint(files: dict[str, Path], name: str) -> NanochatCheckpoint:
    return NanochatCheckpoint(files[name])


def decoder_of(
    checkpoint: NanochatCheckpoint,
    num_blocks: int,
    attention: AttentionBackend | None = None,
    dtype: torch.dtype = torch.float32,
    max_model_len: int = CONTEXT,
) -> NanochatDecoder:
    weights = load(checkpoint, dtype, CPU, lambda done, total: None)
    cache = kvcache.allocate(checkpoint.spec, num_blocks, 16, dtype, CPU)
    return NanochatDecoder(checkpoint.spec, weights, cache, attention or NumbaAttention(), max_model_len)


class NanochatHarness(Harness):
    """The same scheduler and runner around a nanochat model."""

    def __init__(
        self,
        checkpoint: NanochatCheckpoint,
        limits: Limits = LIMITS,
        num_blocks: int = 300,
        attention: AttentionBackend | None = None,
    ) -> None:
        decoder = decoder_of(checkpoint, num_blocks, attention)
        rows = RowTable(limits.max_seqs, CONTEXT // 16, VOCAB, CPU)
        self.limits = limits
        self.runner = Runner(decoder, rows, 16, CPU, prev_ids=checkpoint.spec.smears)
        self.scheduler = Scheduler(limits, engine_build.BlockPool(num_blocks, 16), time.monotonic)
        self.plans, self.told, self.logprobs, self._next_id = [], {}, {}, 0

    def greedy(self, prompts: list[list[int]] = PROMPTS) -> list[list[int]]:
        return self.generate(prompts, NEW_TOKENS, temperature=0.0)


def logits_of(decoder: NanochatDecoder, ids: list[int]) -> torch.Tensor:
    """Of a whole sequence in one step."""
    count, places = len(ids), torch.arange(len(ids))
    view = BatchView(
        ids=torch.tensor(ids),
        positions=places,
        slots=32 + places,
        sample_rows=places,
        q_starts=np.array([0, count], np.int32),
        kv_lens=np.array([count], np.int32),
        block_tables=np.arange(2, 2 + -(-count // 16), dtype=np.int32)[None],
        prev_ids=torch.tensor([0, *ids[:-1]]),
    )
    return decoder.head(decoder.forward(view))


@pytest.mark.parametrize("attention", [SdpaAttention(), ReferenceAttention()], ids=lambda backend: backend.name)
def test_logits_equal_the_oracles(name: str, checkpoint: NanochatCheckpoint, attention: AttentionBackend) -> None:
    ids = PROMPTS[-1] if attention.name == "sdpa" else PROMPTS[-2][:50]
    theirs = oracle_logits(ERAS[name], ids)
    torch.testing.assert_close(logits_of(decoder_of(checkpoint, 40, attention), ids), theirs, rtol=1e-4, atol=1e-4)


def test_a_context_may_be_longer_than_in_training(name: str, checkpoint: NanochatCheckpoint) -> None:
    """As in nanochat: no layer that has a pattern sees further back than a whole context of the training."""
    ids = [*PROMPTS[-1], *PROMPTS[-2]]
    ours = logits_of(decoder_of(checkpoint, 50, SdpaAttention(), max_model_len=len(ids)), ids)
    torch.testing.assert_close(ours, oracle_logits(ERAS[name], ids), rtol=1e-4, atol=1e-4)


def test_bfloat16_is_close_to_it(name: str, checkpoint: NanochatCheckpoint) -> None:
    ids = PROMPTS[2]
    ours = logits_of(decoder_of(checkpoint, 40, dtype=torch.bfloat16), ids)
    theirs = oracle_logits(ERAS[name], ids)
    assert (ours - theirs).square().mean().sqrt() < 0.05 * theirs.square().mean().sqrt()


def test_greedy_ids_equal_those_of_nanochat(name: str, checkpoint: NanochatCheckpoint) -> None:
    """Together; and alone, where rows are other rows of each product."""
    answers = stored_ids(name)
    assert [len(answer) for answer in answers] == [NEW_TOKENS] * len(PROMPTS)
    assert NanochatHarness(checkpoint).greedy() == answers
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        assert NanochatHarness(checkpoint, num_blocks=40).greedy([prompt]) == [answer]


def test_greedy_ids_are_the_same_on_the_portable_path(name: str, checkpoint: NanochatCheckpoint) -> None:
    assert NanochatHarness(checkpoint, attention=SdpaAttention()).greedy() == stored_ids(name)


def test_greedy_ids_are_the_same_in_chunks_of_7(name: str, checkpoint: NanochatCheckpoint) -> None:
    harness = NanochatHarness(checkpoint, Limits(max_seqs=8, max_step_tokens=7, max_model_len=CONTEXT, block_size=16))
    assert harness.greedy() == stored_ids(name)
    assert {work.count for plan in harness.plans for work in plan.works} == {1, 2, 3, 4, 5, 6, 7}


def test_greedy_ids_are_the_same_after_preemption(name: str, checkpoint: NanochatCheckpoint) -> None:
    harness = NanochatHarness(checkpoint, num_blocks=50)
    assert harness.greedy() == stored_ids(name)
    assert harness.scheduler.stats().preemptions > 0


def test_greedy_ids_are_the_same_with_prefix_hits(name: str, checkpoint: NanochatCheckpoint) -> None:
    harness = NanochatHarness(checkpoint)
    answers = harness.greedy()
    hits = harness.scheduler.stats().prefix_hits
    assert harness.greedy() == answers == stored_ids(name)
    assert harness.scheduler.stats().prefix_hits - hits >= 600
    # And where the hit ends within an answer that another request has written.
    continued = [prompt + answer[:-1] for prompt, answer in zip(PROMPTS, answers, strict=True)]
    last = harness.generate(continued, 1, temperature=0.0)
    assert last == [answer[-1:] for answer in answers]


def test_greedy_ids_are_the_same_among_others(name: str, checkpoint: NanochatCheckpoint) -> None:
    rng = random.Random(1)
    harness, seqs = NanochatHarness(checkpoint), []
    for prompt in PROMPTS:
        noise = [rng.randrange(VOCAB) for _ in range(rng.randrange(1, 90))]
        harness.submit(noise, max_tokens=rng.randrange(1, 30), temperature=0.9, seed=rng.getrandbits(63))
        seqs.append(harness.submit(prompt, max_tokens=NEW_TOKENS, temperature=0.0))
    harness.run()
    assert [seq.tokens[seq.prompt_len :] for seq in seqs] == stored_ids(name)


# what cannot be served


def test_sizes_are_told_before_anything_is_loaded(name: str, checkpoint: NanochatCheckpoint) -> None:
    made = nanochat.tensors(ERAS[name])
    padding = nanochat.PADDED_VOCAB - VOCAB if ERAS[name].commit != "3a5e0bc" else 0
    tables = [tensor for key, tensor in made.items() if "wte" in key or "lm_head" in key or "value_embeds" in key]
    unused = padding * sum(table.shape[1] for table in tables)
    assert num_parameters(checkpoint.spec) == sum(tensor.numel() for tensor in made.values()) - unused


def test_a_prefix_of_compiled_models_is_taken_off(files: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / files["smear"].name
    torch.save({f"_orig_mod.{key}": tensor for key, tensor in nanochat.tensors(ERAS["smear"]).items()}, file)
    shutil.copy(files["smear"].with_name("meta_000650.json"), tmp_path)
    assert NanochatHarness(NanochatCheckpoint(file)).greedy(PROMPTS[1:2]) == stored_ids("smear")[1:2]


@pytest.mark.parametrize("kept", ["resid_lambdas", "x0_lambdas", None])
def test_lambdas_that_are_missing_change_nothing(kept: str | None, files: dict[str, Path], tmp_path: Path) -> None:
    """As nanochat has it: the stream is multiplied by 1, and 0 times the first embedding is added."""
    neutral = {"resid_lambdas": torch.ones(nanochat.LAYERS), "x0_lambdas": torch.zeros(nanochat.LAYERS)}
    whole = {**nanochat.tensors(ERAS["smear"]), **neutral}
    shutil.copy(files["smear"].with_name("meta_000650.json"), tmp_path / "meta_000001.json")
    logits = []
    for made in (whole, {name: made for name, made in whole.items() if name == kept or name not in neutral}):
        torch.save(made, tmp_path / "model_000001.pt")
        logits.append(logits_of(decoder_of(NanochatCheckpoint(tmp_path / "model_000001.pt"), 40), PROMPTS[2]))
    assert torch.equal(*logits)


def test_embeddings_may_be_stored_in_bfloat16(files: dict[str, Path], tmp_path: Path) -> None:
    made = nanochat.tensors(ERAS["october"])
    made["transformer.wte.weight"] = made["transformer.wte.weight"].bfloat16()
    torch.save(made, tmp_path / "model_000001.pt")
    shutil.copy(files["october"].with_name("meta_000650.json"), tmp_path / "meta_000001.json")
    checkpoint = NanochatCheckpoint(tmp_path / "model_000001.pt")
    embed = load(checkpoint, torch.float32, CPU, lambda done, total: None).embed
    assert torch.equal(embed, made["transformer.wte.weight"][:VOCAB].float())


class Evil:
    def __repr__(self) -> str:
        return "something that runs"

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('it ran')",))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"transformer.wte.weight": Evil()}, "cannot be read"),
        ([torch.zeros(1)], "does not hold a dictionary of tensors"),
        ({"transformer.wte.weight": "text"}, "does not hold a dictionary of tensors"),
        ({}, "lacks 26 tensors"),
        ({"value_embed_A.weight": torch.zeros(1)}, "value_embed_A.weight of the checkpoint has no place"),
        ({"transformer.h.1.attn.ve_gate.weight": torch.zeros(2, 16)}, "read 16 channels; known are 12 and 32"),
        ({"lm_head.weight": torch.zeros(VOCAB - 1, 64)}, "lm_head.weight has shape"),
    ],
    ids=str,
)
def test_files_that_hold_something_else_are_refused(content: object, complaint: str, tmp_path: Path) -> None:
    file = nanochat.save(tmp_path, ERAS["october"])
    if isinstance(content, dict) and content:
        content = {**nanochat.tensors(ERAS["october"]), **content}
    torch.save(content, file)
    with pytest.raises(ModelRefused, match=complaint):
        load(NanochatCheckpoint(file), torch.float32, CPU, lambda done, total: None)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"n_layer": 0}, "n_layer of the checkpoint is 0"),
        ({"vocab_size": None}, "vocab_size of the checkpoint is None"),
        ({"n_head": 5}, "cannot be cut into 5 heads"),
        ({"window_pattern": "SXL"}, "window_pattern is 'SXL'"),
        ({"window_pattern": ""}, "window_pattern is ''"),
    ],
    ids=str,
)
def test_configurations_that_make_no_sense_are_refused(
    changes: dict[str, object], complaint: str, tmp_path: Path
) -> None:
    file = nanochat.save(tmp_path, ERAS["smear"])
    meta = {"model_config": {**nanochat.model_config(ERAS["smear"]), **changes}}
    file.with_name("meta_000650.json").write_text(json.dumps(meta))
    with pytest.raises(ModelRefused, match=complaint):
        NanochatCheckpoint(file)


def test_a_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    file = nanochat.save(tmp_path, ERAS["october"])
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ModelRefused, match=r"model_000650\.pt cannot be read"):
        NanochatCheckpoint(file)


def test_a_file_without_its_sizes_is_refused(tmp_path: Path) -> None:
    file = nanochat.save(tmp_path, ERAS["october"])
    file.with_name("meta_000650.json").unlink()
    with pytest.raises(ModelRefused, match=r"has no meta_000650\.json"):
        NanochatCheckpoint(file)
    with pytest.raises(ModelRefused, match="not named as a nanochat checkpoint"):
        NanochatCheckpoint(file.with_name("weights.pt"))


def config_of(file: Path, **more: int) -> EngineConfig:
    return EngineConfig(
        model=str(file), format="nanochat", socket_path="", device="cpu", dtype="float32", threads=1, **more
    )


def test_how_much_longer_is_bounded(files: dict[str, Path]) -> None:
    phases = engine_build.Phases(lambda phase, done, total: None)
    _, _, ready = engine_build.build(config_of(files["smear"], max_model_len=10 * CONTEXT), phases)
    assert ready.max_model_len == 10 * CONTEXT
    with pytest.raises(ModelRefused, match="--max-model-len 5121 is more than the model's context of 5120 tokens"):
        engine_build.build(config_of(files["smear"], max_model_len=10 * CONTEXT + 1), phases)


def test_the_engine_is_built_around_it(files: dict[str, Path]) -> None:
    """As the process does, warm-up included."""
    config = config_of(files["smear"])
    phases = engine_build.Phases(lambda phase, done, total: None)
    scheduler, _, ready = engine_build.build(config, phases)
    assert (ready.architecture, ready.dtype, ready.max_model_len) == ("nanochat", "float32", CONTEXT)
    assert (ready.vocab_size, ready.hidden_size) == (VOCAB, nanochat.HIDDEN)
    assert not scheduler.has_work
