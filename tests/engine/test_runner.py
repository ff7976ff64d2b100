"""Sampling parameters through a real forward pass: what one row asks for, and what its neighbours see of it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numba
import pytest
import torch

from engine.attention import paged_numba
from engine.build import choose_attention, warm_up
from engine.errors import ModelRefused
from engine.host import Host
from engine.jit import kernel
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


def test_requests_meet_no_kernel_that_the_warm_up_did_not_compile(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    met: set[tuple[Any, ...]] = set()
    for name in ("paged_decode", "scatter"):
        kernel = getattr(paged_numba, name)

        def run(*args: Any, name: str = name, kernel: Any = kernel) -> None:
            met.add((name, *map(numba.typeof, args)))
            kernel(*args)

        monkeypatch.setattr(paged_numba, name, run)
    warm_up(harness.runner, harness.limits)
    compiled = set(met)
    harness.generate([PROMPT], 4)
    harness.generate([PROMPT, PROMPT[:2], PROMPT * 8], 4)
    for length in (3, 40, 1):  # prompts beside rows that decode
        harness.submit(PROMPT[:1] * length, max_tokens=4)
        for _ in range(2):
            plan = harness.scheduler.plan()
            assert plan is not None
            harness.scheduler.commit(plan, harness.runner.execute(plan))
    harness.run()
    assert met == compiled


def test_the_compiled_kernel_is_refused_for_a_type_it_does_not_read() -> None:
    host = Host(torch.device("cpu"), torch.float16, 1, "a processor")
    with pytest.raises(ModelRefused, match=r"--attention numba is for .* not for float16 on cpu"):
        choose_attention("numba", host)
    assert choose_attention("auto", host).name == "sdpa"


def test_kernels_for_gpus_are_chosen_where_they_run_and_refused_elsewhere() -> None:
    old = Host(torch.device("cuda"), torch.float16, 1, "cuda (an old card)")
    assert choose_attention("auto", old).name == "sdpa"
    with pytest.raises(ModelRefused, match=r"--attention triton does not run on cuda .* use --attention sdpa"):
        choose_attention("triton", old)
    assert choose_attention("auto", Host(torch.device("cuda"), torch.bfloat16, 1, "cuda (a new card)", True)) is None


@pytest.mark.parametrize(("block_size", "max_model_len"), [(1, 64), (16, 1), (16, 2), (16, 4)])
def test_the_warm_up_stays_within_a_block_and_the_context(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, block_size: int, max_model_len: int
) -> None:
    works: list[Any] = []
    monkeypatch.setattr(harness.runner, "execute", lambda plan: works.extend(plan.works))
    monkeypatch.setattr(harness.runner, "release", lambda slot: None)
    warm_up(harness.runner, replace(harness.limits, block_size=block_size, max_model_len=max_model_len))
    assert works
    assert all(0 < work.start + work.count <= min(block_size, max_model_len) and work.count > 0 for work in works)


def test_kernels_are_compiled_where_nothing_can_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_ = numba.njit

    def njit(**options: Any) -> Any:
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return compile_(**options)

    monkeypatch.setattr(numba, "njit", njit)
    assert kernel(parallel=False)(lambda x: x + 1)(41) == 42
