"""Rotary frequencies of real models against transformers."""

from typing import Any

import pytest
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from engine.models import rope
from engine.models.spec import ModelSpec, spec_from_config
from tests.engine.test_models import SIZES

LLAMA3 = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
PHI4_MINI = {
    "rope_type": "longrope",
    "short_factor": [1.0] * 48,
    "long_factor": [1.0 + index / 1.5 for index in range(48)],
}
SCALED: dict[str, dict[str, Any]] = {
    "Llama-3.1-8B": {"rope_scaling": {**LLAMA3, "factor": 8.0}},
    "Llama-3.2-1B": {"rope_scaling": {**LLAMA3, "factor": 32.0}},
    "Qwen2.5-7B": {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}},
    "Phi-4-mini": {"rope_scaling": PHI4_MINI},
}


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("length", [4096, 131072])
def test_scaled_frequencies_are_those_of_transformers(name: str, length: int) -> None:
    config = {**SIZES[name], **SCALED[name]}
    spec = spec_from_config(config)
    kind = config["architectures"][0].removesuffix("ForCausalLM") + "Config"
    theirs = getattr(transformers, kind).from_dict(config)
    expected, scale = ROPE_INIT_FUNCTIONS[theirs.rope_parameters["rope_type"]](theirs, torch.device("cpu"), length)
    torch.testing.assert_close(rope.inverse_frequencies(spec, length), expected, rtol=1e-6, atol=0.0)
    assert rope.attention_factor(spec.rope_scaling) == pytest.approx(scale, rel=1e-12)


def spec_of_part(head_dim: int, rotary_dim: int) -> ModelSpec:
    base = SIZES["Phi-4-mini"]
    share = {"head_dim": head_dim, "partial_rotary_factor": rotary_dim / head_dim}
    return spec_from_config({**base, **share, "rope_scaling": None})


@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(128, 96), (8, 4), (8, 6), (12, 2), (16, 16)])
def test_rope_of_a_part_is_that_part_in_another_order(head_dim: int, rotary_dim: int) -> None:
    spec = spec_of_part(head_dim, rotary_dim)
    assert spec.rotary_dim == rotary_dim
    order = rope.order(spec)
    assert sorted(order) == list(range(head_dim))
    cos, sin = rope.table(spec, 50, torch.float32, torch.device("cpu"))
    x = torch.randn(50, 3, head_dim, generator=torch.Generator().manual_seed(0))
    half = rotary_dim // 2
    turned = rope.rotate(x[..., :rotary_dim], cos[:, None, :half], sin[:, None, :half])
    expected = torch.cat((turned, x[..., rotary_dim:]), dim=-1)
    assert torch.equal(rope.rotate(x[..., order], cos[:, None], sin[:, None]), expected[..., order])
