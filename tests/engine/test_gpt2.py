"""GPT-2 against transformers, from safetensors and GGUF; rosellm's checkpoints against a forward written apart."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2LMHeadModel

from engine.attention.base import AttentionBackend
from engine.attention.paged_numba import NumbaAttention
from engine.attention.reference import ReferenceAttention
from engine.attention.sdpa import SdpaAttention
from engine.build import Phases, build
from engine.errors import ModelRefused
from engine.loaders.checkpoint import open_checkpoint
from engine.loaders.gguf import GgufCheckpoint
from engine.loaders.rosellm import RosellmCheckpoint
from engine.loaders.safetensors import SafetensorsCheckpoint
from engine.models.family import read_config
from scheduler.protocol import EngineConfig
from scheduler.types import Limits, SamplingParams, Sequence
from tests.fixtures.gpt2 import ROSELLM, RosellmOracle, dequantised, save_rosellm, tiny, write_gguf
from tests.fixtures.harness import Harness, Loaded, load

COUNT = 24
LIMITS = Limits(max_seqs=8, max_step_tokens=64, max_model_len=256, block_size=16)
PROMPTS = [[(7 * i * i + 3 * i + n) % 500 for i in range(n)] for n in (1, 5, 16, 40, 100)]
BACKENDS: list[AttentionBackend[Any]] = [NumbaAttention(), SdpaAttention(), ReferenceAttention()]


@torch.inference_mode()
def choices(model: GPT2LMHeadModel, tokens: list[int], count: int) -> list[int]:
    return model(torch.tensor([tokens[:-1]])).logits[0, -count:].argmax(dim=1).tolist()


def opened(path: Path) -> Loaded:
    checkpoint = GgufCheckpoint(path) if path.suffix == ".gguf" else SafetensorsCheckpoint(path)
    return Loaded(checkpoint, load(checkpoint))


@pytest.fixture(scope="module")
def theirs() -> GPT2LMHeadModel:
    return tiny()


@pytest.fixture(scope="module", params=["safetensors", "gguf"])
def model(request: pytest.FixtureRequest, theirs: GPT2LMHeadModel, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    folder = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(folder)
    return opened(write_gguf(theirs, folder / "tiny.gguf") if request.param == "gguf" else folder)


@pytest.fixture(scope="module")
def answers(theirs: GPT2LMHeadModel) -> list[list[int]]:
    """What transformers generates, token by token, each prompt alone."""
    found = []
    for prompt in PROMPTS:
        tokens = list(prompt)
        for _ in range(COUNT):
            tokens += choices(theirs, [*tokens, 0], 1)
        found.append(tokens[len(prompt) :])
    assert len({token for answer in found for token in answer}) > 20
    return found


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
def test_greedy_ids_equal_those_of_transformers_batched(
    model: Loaded, answers: list[list[int]], backend: AttentionBackend[Any]
) -> None:
    harness = Harness(model, LIMITS, 100, backend)
    count = 6 if backend.name == "reference" else COUNT  # which takes its time
    assert harness.generate(PROMPTS, count, temperature=0.0) == [answer[:count] for answer in answers]
    assert max(len(plan.works) for plan in harness.plans) == len(PROMPTS)


def test_greedy_ids_equal_alone(model: Loaded, answers: list[list[int]]) -> None:
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        assert Harness(model, LIMITS, 100).generate([prompt], COUNT, temperature=0.0) == [answer]


def test_greedy_ids_equal_in_chunks_of_7(model: Loaded, answers: list[list[int]]) -> None:
    harness = Harness(model, replace(LIMITS, max_step_tokens=7), 100)
    assert harness.generate(PROMPTS[::-1], COUNT, temperature=0.0) == answers[::-1]
    assert max(work.count for plan in harness.plans for work in plan.works) == 7


def test_greedy_ids_equal_with_prefix_hits(model: Loaded, answers: list[list[int]]) -> None:
    harness = Harness(model, LIMITS, 100)
    harness.generate(PROMPTS, 2, temperature=0.0)
    assert harness.generate(PROMPTS, COUNT, temperature=0.0) == answers
    assert harness.scheduler.stats().prefix_hits > 100


def test_greedy_ids_equal_after_preemption(theirs: GPT2LMHeadModel, model: Loaded) -> None:
    prompts = [[(7 * i * i + n) % 500 for i in range(30)] for n in range(5)]
    harness = Harness(model, LIMITS, 14)  # room for all five as they come, not as they grow
    for prompt, answer in zip(prompts, harness.generate(prompts, COUNT, temperature=0.0), strict=True):
        assert answer == choices(theirs, prompt + answer, COUNT)
    assert harness.scheduler.stats().preemptions > 0


def test_greedy_ids_equal_up_to_the_last_position(theirs: GPT2LMHeadModel, model: Loaded) -> None:
    prompt = [(11 * i + 5) % 500 for i in range(200)]
    (answer,) = Harness(model, LIMITS, 100).generate([prompt], 56, temperature=0.0)
    assert len(prompt + answer) == 256
    assert answer == choices(theirs, prompt + answer, 56)


@pytest.mark.parametrize(
    "changes",
    [
        {"activation_function": "gelu"},
        {"activation_function": "gelu_pytorch_tanh", "n_inner": 80},
        {"scale_attn_weights": False},
        {"scale_attn_by_inverse_layer_idx": True},
        {"tie_word_embeddings": False, "layer_norm_epsilon": 1e-2},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_variants_of_the_config(changes: dict[str, Any], tmp_path: Path) -> None:
    other = tiny(**changes)
    other.save_pretrained(tmp_path)
    for prompt, answer in zip(
        PROMPTS, Harness(opened(tmp_path), LIMITS, 100).generate(PROMPTS, COUNT, temperature=0.0), strict=True
    ):
        assert answer == choices(other, prompt + answer, COUNT)


def test_bfloat16_chooses_what_is_about_as_likely(theirs: GPT2LMHeadModel, tmp_path: Path) -> None:
    """As an engine builds it, with its weights packed where they can be."""
    theirs.save_pretrained(tmp_path)
    named = {"model": str(tmp_path), "format": "safetensors", "socket_path": ""}
    config = EngineConfig(**named, dtype="bfloat16", device="cpu", threads=1)
    scheduler, runner, ready = build(config, Phases(lambda phase, done, total: None))
    assert (ready.architecture, ready.dtype, ready.max_model_len) == ("GPT2LMHeadModel", "bfloat16", 256)
    params = SamplingParams(max_tokens=COUNT, temperature=0.0)
    seqs = [Sequence(id, params, list(prompt), len(prompt), 0.0, 0) for id, prompt in enumerate(PROMPTS, start=1)]
    scheduler.submit(seqs)
    while scheduler.has_work:
        plan = scheduler.plan()
        assert plan is not None
        runner.launch(plan)
        scheduler.commit(plan, runner.finish())
    for seq in seqs:
        with torch.inference_mode():
            logits = theirs(torch.tensor([seq.tokens[:-1]])).logits[0, -COUNT:]
        chosen = logits.gather(1, torch.tensor(seq.tokens[-COUNT:])[:, None])[:, 0]
        assert (logits.max(dim=1).values - chosen).max() < 0.1 * logits.std()


def test_quantised_gguf_equals_its_own_weights_in_transformers(tmp_path: Path) -> None:
    wide = tiny(n_embd=64, n_layer=2)
    model = opened(write_gguf(wide, tmp_path / "tiny.gguf", kind="Q8_0"))
    left = dequantised(wide, "Q8_0")
    for prompt, answer in zip(PROMPTS, Harness(model, LIMITS, 100).generate(PROMPTS, 12, temperature=0.0), strict=True):
        assert answer == choices(left, prompt + answer, 12)


def test_names_without_their_prefix_and_with_buffers(theirs: GPT2LMHeadModel, tmp_path: Path) -> None:
    """As the first files on the hub have them."""
    theirs.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    plain = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    plain |= {"h.0.attn.bias": torch.ones(1, 1, 256, 256), "lm_head.weight": plain["wte.weight"].clone()}
    expected = load(SafetensorsCheckpoint(tmp_path))
    save_file(plain, tmp_path / "model.safetensors")
    loaded = load(SafetensorsCheckpoint(tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(loaded.tensors(), expected.tensors(), strict=True))


def test_dummy_weights_run(theirs: GPT2LMHeadModel, tmp_path: Path) -> None:
    theirs.config.architectures = ["GPT2LMHeadModel"]
    theirs.config.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path, "dummy", seed=1)
    weights = load(checkpoint)
    assert (weights.layers[1].ffn_norm == 1).all()  # type: ignore[attr-defined]
    assert len(Harness(Loaded(checkpoint, weights), LIMITS, 100).generate(PROMPTS, 3, temperature=0.0)) == len(PROMPTS)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"activation_function": "relu"}, "activation 'relu' is not supported in GPT-2"),
        ({"add_cross_attention": True}, "cross attention"),
        ({"n_head": 5}, "48 hidden dimensions cannot be divided among 5 heads"),
        ({"n_layer": None}, "config.json has no 'n_layer'"),
        ({"architectures": ["GPTJForCausalLM"]}, "GPTJForCausalLM is not supported; supported: GPT2LMHeadModel"),
    ],
)
def test_configs_that_cannot_be_computed_are_named(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    config = {**json.loads((tmp_path / "config.json").read_text()), **change}
    with pytest.raises(ModelRefused, match=words):
        read_config({name: value for name, value in config.items() if value is not None})


def test_kernels_that_do_not_compute_it_are_refused_by_name(theirs: GPT2LMHeadModel, tmp_path: Path) -> None:
    from engine.build import _without_kernels

    theirs.save_pretrained(tmp_path)
    spec = SafetensorsCheckpoint(tmp_path).spec
    assert _without_kernels("auto", spec).name == "sdpa"
    with pytest.raises(ModelRefused, match="--attention triton does not compute GPT2LMHeadModel"):
        _without_kernels("triton", spec)


# --- rosellm ---


@torch.inference_mode()
def oracle_choices(oracle: RosellmOracle, tokens: list[int], count: int) -> list[int]:
    return oracle(torch.tensor(tokens[:-1]))[-count:].argmax(dim=1).tolist()


@pytest.mark.parametrize(
    ("changes", "tied"), [({}, True), ({"activation": "gelu_new", "d_ff": 64}, True), ({"n_heads": 6}, False)]
)
def test_rosellm_checkpoints_equal_a_forward_of_theirs(changes: dict[str, Any], tied: bool, tmp_path: Path) -> None:
    oracle = RosellmOracle({**ROSELLM, **changes}, tied=tied)
    checkpoint = RosellmCheckpoint(save_rosellm(oracle, tmp_path / "tiny.pt"))
    assert checkpoint.spec.tied is tied
    model = Loaded(checkpoint, load(checkpoint))
    for limits in (LIMITS, replace(LIMITS, max_step_tokens=7)):
        harness = Harness(model, limits, 100)
        for _ in range(2):  # the second time with prefix hits
            for prompt, answer in zip(PROMPTS, harness.generate(PROMPTS, COUNT, temperature=0.0), strict=True):
                assert answer == oracle_choices(oracle, prompt + answer, COUNT)
        assert harness.scheduler.stats().prefix_hits > 100


def test_rosellm_names_of_wrapped_models(tmp_path: Path) -> None:
    oracle = RosellmOracle(ROSELLM)
    plain = load(RosellmCheckpoint(save_rosellm(oracle, tmp_path / "plain.pt")))
    wrapped = {f"module.{name}": tensor for name, tensor in oracle.state_dict().items()}
    wrapped["module.blocks.0.attn.mask"] = torch.ones(1, 1, 4, 4)
    torch.save({"model": wrapped, "config": ROSELLM}, tmp_path / "wrapped.pt")
    loaded = load(RosellmCheckpoint(tmp_path / "wrapped.pt"))
    assert all(torch.equal(a, b) for a, b in zip(loaded.tensors(), plain.tensors(), strict=True))


def test_a_rosellm_checkpoint_without_config_is_of_the_default_one(tmp_path: Path) -> None:
    checkpoint = RosellmCheckpoint(save_rosellm(RosellmOracle(ROSELLM), tmp_path / "tiny.pt", config=None))
    assert (checkpoint.spec.hidden, checkpoint.spec.num_heads, checkpoint.spec.vocab_size) == (768, 12, 32_000)
    with pytest.raises(ModelRefused, match=r"has shape \[500, 48\], expected \[32000, 768\]"):
        load(checkpoint)


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("harmed"),))


def test_a_rosellm_checkpoint_executes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {}, "extra": Harmful()}, tmp_path / "bad.pt")
    with pytest.raises(ModelRefused, match=r"bad\.pt cannot be read as a checkpoint of torch\.save"):
        RosellmCheckpoint(tmp_path / "bad.pt")
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], "holds no dictionary"),
        ({"step": 1}, "has no 'model' of tensors"),
        ({"model": {"a": torch.ones(1)}}, "lacks 1 tensor: token_embedding.weight"),
        ({"model": {"token_embedding.weight": torch.ones(1)}, "config": 3}, "'config' is no dictionary"),
        ({"model": {"token_embedding.weight": torch.ones(1)}, "config": {"n_heads": "4"}}, "n_heads .* is '4'"),
        ({"model": {"token_embedding.weight": torch.ones(1)}, "config": {"n_heads": 0}}, "n_heads .* is 0"),
        ({"model": {"token_embedding.weight": torch.ones(1)}, "config": {"n_heads": 7}}, "among 7 heads"),
    ],
)
def test_what_is_no_checkpoint_of_rosellm_is_refused(content: Any, words: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "bad.pt")
    with pytest.raises(ModelRefused, match=words):
        RosellmCheckpoint(tmp_path / "bad.pt")


@pytest.mark.parametrize("data", [b"", b"nothing", b"PK\x03\x04" + bytes(100)])
def test_files_that_are_no_checkpoint_are_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.pt").write_bytes(data)
    with pytest.raises(ModelRefused, match=r"bad\.pt cannot be read"):
        RosellmCheckpoint(tmp_path / "bad.pt")


def test_one_rank_of_a_tensor_parallel_run_is_refused(tmp_path: Path) -> None:
    state = RosellmOracle(ROSELLM).state_dict()
    for layer in range(3):
        for part in ("weight", "bias"):
            state[f"blocks.{layer}.attn.qkv_proj.{part}"] = state[f"blocks.{layer}.attn.qkv_proj.{part}"][:72].clone()
    torch.save({"model": state, "config": {**ROSELLM, "use_tensor_parallel": True}}, tmp_path / "rank0.pt")
    with pytest.raises(ModelRefused, match="one rank's part of a tensor-parallel model"):
        load(RosellmCheckpoint(tmp_path / "rank0.pt"))
