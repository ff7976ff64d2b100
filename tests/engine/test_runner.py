"""Sampling parameters through a real forward pass: what one row asks for, and what its neighbours see of it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.loaders.dummy import DummyCheckpoint
from tests.fixtures.harness import LIMITS, Harness, Loaded, load

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 101,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
PROMPT = [5, 17, 3, 44, 9]


@pytest.fixture
def harness(tmp_path: Path) -> Harness:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    checkpoint = DummyCheckpoint(tmp_path, seed=0)
    return Harness(Loaded(checkpoint, load(checkpoint)), replace(LIMITS, max_model_len=128), num_blocks=64)


def greedy(harness: Harness, max_tokens: int = 6, **params: Any) -> list[int]:
    """The answer of a row with `params`, computed beside a plain one that must not notice."""
    (alone,) = harness.generate([PROMPT], max_tokens, temperature=0.0)
    asking = harness.submit(PROMPT, max_tokens=max_tokens, temperature=0.0, **params)
    plain = harness.submit(PROMPT, max_tokens=max_tokens, temperature=0.0)
    harness.run()
    assert plain.tokens[plain.prompt_len :] == alone
    return asking.tokens[asking.prompt_len :]


def test_a_bias_chooses_the_token(harness: Harness) -> None:
    assert greedy(harness, logit_bias=((42, 100.0),)) == [42] * 6


@pytest.mark.parametrize("penalty", [{"presence": 2.0}, {"frequency": 2.0}, {"repetition": 10.0}], ids=str)
def test_a_penalty_forbids_to_repeat(harness: Harness, penalty: dict[str, float]) -> None:
    """The logits of random weights lie so close together that any of these rules every seen token out."""
    answer = greedy(harness, **penalty)
    assert len(set(answer)) == len(answer)


def test_min_tokens_rule_the_stop_id_out(harness: Harness) -> None:
    (free,) = harness.generate([PROMPT], 6, temperature=0.0)
    stop = (free[0],)
    assert greedy(harness, stop_ids=stop) == [free[0]]
    held_off = greedy(harness, stop_ids=stop, min_tokens=3)
    assert free[0] not in held_off[:3]
