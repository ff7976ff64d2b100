"""Packed weights against the same weights as they are."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from engine.loaders.dummy import DummyCheckpoint
from engine.models.products import can_pack, linear, pack
from tests.fixtures.harness import Harness, Loaded, load

CPU = torch.device("cpu")
# Processors without AVX-512 pack no bfloat16; float32 goes the same way there.
DTYPE = torch.bfloat16 if can_pack(CPU, torch.bfloat16) else torch.float32
CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "vocab_size": 203,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}


@pytest.fixture
def loaded(tmp_path: Path) -> Loaded:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    checkpoint = DummyCheckpoint(tmp_path, seed=0)
    return Loaded(checkpoint, load(checkpoint, DTYPE))


@torch.inference_mode()
@pytest.mark.parametrize("rows", [1, 2, 7, 32, 300])
def test_products_are_the_same(loaded: Loaded, rows: int) -> None:
    layer = loaded.weights.layers[0]
    plain = layer.qkv.clone()
    pack(loaded.weights)
    assert layer.qkv.is_mkldnn and layer.qkv.shape == plain.shape
    x = torch.randn(rows, CONFIG["hidden_size"]).to(DTYPE)
    for bias in (layer.qkv_bias, None):
        expected = F.linear(x.double(), plain.double(), None if bias is None else bias.double())
        torch.testing.assert_close(linear(x, layer.qkv, bias).double(), expected, rtol=2**-8, atol=2**-8)


def test_answers_are_the_same(loaded: Loaded) -> None:
    prompts = [[1, 2, 3], list(range(60)), [7]]
    plain = Harness(loaded).generate(prompts, 12, temperature=0.0)
    pack(loaded.weights)
    assert Harness(loaded).generate(prompts, 12, temperature=0.0) == plain


def test_a_tied_embedding_stays_as_it_is(loaded: Loaded) -> None:
    pack(loaded.weights)
    assert loaded.weights.head.is_mkldnn and not loaded.weights.embed.is_mkldnn


def test_only_what_gains_is_packed() -> None:
    assert can_pack(CPU, torch.bfloat16) == torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert not can_pack(CPU, torch.float32)
    assert not can_pack(torch.device("cuda"), torch.bfloat16)
