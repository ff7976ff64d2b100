"""Every supported family against transformers: tiny random models, saved by transformers, loaded by us."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, PretrainedConfig

from engine import kvcache
from engine.attention.base import AttentionBackend
from engine.attention.paged_numba import NumbaAttention
from engine.attention.reference import ReferenceAttention
from engine.attention.sdpa import SdpaAttention
from engine.batch import BatchView
from engine.loaders.safetensors import SafetensorsCheckpoint
from engine.models.decoder import Decoder
from scheduler.types import Limits
from tests.fixtures.harness import CPU, Harness, Loaded, load

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
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.25, 1.5],
    "long_factor": [2.0, 7.0, 30.0],
}
FROM_4, FROM_256 = {"original_max_position_embeddings": 4}, {"original_max_position_embeddings": 256}
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
    "smollm3, windows": ("SmolLM3Config", {"use_sliding_window": True, "sliding_window": 9}),
    "phi3": ("Phi3Config", {}),
    "phi3, sliding window": ("Phi3Config", {"sliding_window": 9}),
    "phi3, rope of a part": ("Phi3Config", {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}),
    # transformers takes the list by the length of each forward pass: here all are short, or all are long
    "phi3, longrope, short": ("Phi3Config", {"rope_parameters": LONGROPE, "max_position_embeddings": 1024, **FROM_256}),
    "phi3, longrope, long": ("Phi3Config", {"rope_parameters": LONGROPE, "tie_word_embeddings": True, **FROM_4}),
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
    return getattr(transformers, kind)(**{**SIZES, **copy.deepcopy(more)})  # for it changes what it is given


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


@torch.inference_mode()
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_close_to_those_of_transformers(name: str, tmp_path: Path) -> None:
    theirs = save_random_model(tiny(name), tmp_path)
    checkpoint = SafetensorsCheckpoint(tmp_path)
    cache = kvcache.allocate(checkpoint.spec, 10, 16, torch.float32, CPU)
    decoder = Decoder(checkpoint.spec, load(checkpoint), cache, ReferenceAttention(), max_model_len=256)
    tokens, places = torch.arange(100) * 37 % 211, torch.arange(100)
    view = BatchView(
        ids=tokens,
        positions=places,
        slots=32 + places,
        sample_rows=places,
        q_starts=np.array([0, 100], np.int32),
        kv_lens=np.array([100], np.int32),
        block_tables=np.arange(2, 9, dtype=np.int32)[None],
    )
    torch.testing.assert_close(
        decoder.head(decoder.forward(view)), theirs(tokens[None]).logits[0], rtol=1e-4, atol=1e-5
    )


def test_shards_are_read_through_their_index(tmp_path: Path) -> None:
    save_random_model(tiny("llama"), tmp_path / "one")
    save_random_model(tiny("llama"), tmp_path / "many", shard_size="40KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    one, many = (load(SafetensorsCheckpoint(tmp_path / folder)) for folder in ("one", "many"))
    assert all(torch.equal(a, b) for a, b in zip(one.tensors(), many.tensors(), strict=True))
