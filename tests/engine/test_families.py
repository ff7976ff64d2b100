"""Every supported family against transformers: tiny random models, saved by transformers, loaded by us."""

from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, PretrainedConfig

from engine.attention.base import AttentionBackend
from engine.attention.paged_numba import NumbaAttention
from engine.attention.reference import ReferenceAttention
from engine.attention.sdpa import SdpaAttention
from engine.loaders.safetensors import SafetensorsCheckpoint
from scheduler.types import Limits
from tests.fixtures.harness import Harness, Loaded, load

SIZES = {
    "vocab_size": 211,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
CONFIGS = {
    "llama": ("LlamaConfig", {"tie_word_embeddings": True}),
    "llama, untied with biases": ("LlamaConfig", {"attention_bias": True, "mlp_bias": True}),
    "llama 3.1 rope": ("LlamaConfig", {"rope_parameters": LLAMA3}),
    "linear rope": ("LlamaConfig", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}),
    "yarn rope": ("LlamaConfig", {"rope_parameters": YARN}),
    "mistral, sliding window": ("MistralConfig", {"sliding_window": 9, "head_dim": 16}),
    "qwen2": ("Qwen2Config", {}),
    "qwen2, window from layer 2": ("Qwen2Config", {"use_sliding_window": True, "sliding_window": 9}),
    "qwen3": ("Qwen3Config", {"head_dim": 16, "tie_word_embeddings": True}),
    "smollm3, layers without rope": ("SmolLM3Config", {"no_rope_layers": [1, 1, 0, 1]}),
}


def save_random_model(config: PretrainedConfig, folder: Path, shard_size: str = "5GB") -> AutoModelForCausalLM:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in model.named_parameters():  # initial biases are zero and norms one: they would hide mistakes
        if "norm" in name or name.endswith("bias"):
            torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.3)
    model.save_pretrained(folder, max_shard_size=shard_size)
    return model


def tiny(name: str) -> PretrainedConfig:
    kind, more = CONFIGS[name]
    if "window from" in name:
        more = {**more, "max_window_layers": 2}
    return getattr(transformers, kind)(**SIZES, **more)


@torch.inference_mode()
def expected_choices(model: AutoModelForCausalLM, tokens: list[int], count: int) -> list[int]:
    return model(torch.tensor([tokens[:-1]])).logits[0, -count:].argmax(dim=1).tolist()


@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_tokens_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    theirs = save_random_model(tiny(name), tmp_path)
    checkpoint = SafetensorsCheckpoint(tmp_path)
    model = Loaded(checkpoint, load(checkpoint))
    prompts = [[(7 * i * i + 3 * i + n) % 211 for i in range(n)] for n in (1, 5, 40, 100)]
    backends: list[AttentionBackend] = [NumbaAttention(), SdpaAttention(), ReferenceAttention()]
    for backend, count in zip(backends, (24, 24, 6), strict=True):
        limits = Limits(max_seqs=4, max_step_tokens=32, max_model_len=256, block_size=16)
        answers = Harness(model, limits, 64, backend).generate(prompts, count, temperature=0.0)
        for prompt, answer in zip(prompts, answers, strict=True):
            assert answer == expected_choices(theirs, prompt + answer, count), backend.name


def test_shards_are_read_through_their_index(tmp_path: Path) -> None:
    save_random_model(tiny("llama"), tmp_path / "one")
    save_random_model(tiny("llama"), tmp_path / "many", shard_size="40KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    one, many = (load(SafetensorsCheckpoint(tmp_path / folder)) for folder in ("one", "many"))
    assert all(torch.equal(a, b) for a, b in zip(one.tensors(), many.tensors(), strict=True))
