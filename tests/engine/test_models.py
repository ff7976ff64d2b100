"""What config.json says of real models: their sizes, and what is taken from them."""

from typing import Any

import pytest
import torch

from engine.models.spec import spec_from_config
from engine.models.weights import allocate


def sizes(
    family: str, hidden: int, ffn: int, layers: int, heads: tuple[int, int], vocab: int, context: int, **more: Any
) -> dict[str, Any]:
    return {
        "architectures": [f"{family}ForCausalLM"],
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "vocab_size": vocab,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": False,
        **more,
    }


TIED = {"tie_word_embeddings": True}
PHI_4_MINI = {"partial_rotary_factor": 0.75, "original_max_position_embeddings": 4096, "sliding_window": 262144}
SIZES = {
    "Llama-3.1-8B": sizes("Llama", 4096, 14336, 32, (32, 8), 128256, 131072, rope_theta=500_000.0),
    "Llama-3.2-1B": sizes("Llama", 2048, 8192, 16, (32, 8), 128256, 131072, rope_theta=500_000.0, head_dim=64, **TIED),
    "SmolLM2-135M": sizes("Llama", 576, 1536, 30, (9, 3), 49152, 8192, rope_theta=100_000.0, **TIED),
    "SmolLM3-3B": sizes("SmolLM3", 2048, 11008, 36, (16, 4), 128256, 65536, rope_theta=5_000_000.0, **TIED),
    "Mistral-7B-v0.3": sizes("Mistral", 4096, 14336, 32, (32, 8), 32768, 32768, sliding_window=None),
    "Mistral-Nemo": sizes("Mistral", 5120, 14336, 40, (32, 8), 131072, 131072, head_dim=128),
    "Qwen2.5-7B": sizes(
        "Qwen2", 3584, 18944, 28, (28, 4), 152064, 131072, use_sliding_window=False, sliding_window=131072
    ),
    "Qwen3-0.6B": sizes("Qwen3", 1024, 3072, 28, (16, 8), 151936, 40960, head_dim=128, sliding_window=None, **TIED),
    "Phi-4": sizes("Phi3", 5120, 17920, 40, (40, 10), 100352, 16384, rope_theta=250_000, sliding_window=None),
    "Phi-4-mini": sizes("Phi3", 3072, 8192, 32, (24, 8), 200064, 131072, **TIED, **PHI_4_MINI),
}
PARAMETERS = {  # as published
    "Llama-3.1-8B": 8_030_261_248,
    "Llama-3.2-1B": 1_235_814_400,
    "SmolLM2-135M": 134_515_008,
    "SmolLM3-3B": 3_075_098_624,
    "Mistral-7B-v0.3": 7_248_023_552,
    "Mistral-Nemo": 12_247_782_400,
    "Qwen2.5-7B": 7_615_616_512,
    "Qwen3-0.6B": 596_049_920,
    "Phi-4": 14_659_507_200,
    "Phi-4-mini": 3_836_021_760,
}


@pytest.mark.parametrize("name", SIZES)
def test_models_have_as_many_parameters_as_is_published(name: str) -> None:
    spec = spec_from_config(SIZES[name])
    assert allocate(spec, torch.bfloat16, torch.device("meta")).num_parameters == PARAMETERS[name]
    assert spec.windows == ()  # a window as wide as the context is none


def test_smollm3_leaves_rope_out_of_every_fourth_layer() -> None:
    assert spec_from_config(SIZES["SmolLM3-3B"]).nope_layers == frozenset(range(3, 36, 4))


def test_phi_4_turns_all_of_a_head_and_the_mini_three_quarters() -> None:
    whole, part = spec_from_config(SIZES["Phi-4"]), spec_from_config(SIZES["Phi-4-mini"])
    assert (whole.head_dim, whole.rotary_dim, whole.rope_scaling) == (128, 128, None)
    assert (part.head_dim, part.rotary_dim) == (128, 96)
