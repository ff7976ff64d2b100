"""Each flag of roseinfer's server: what it means here, or that it means nothing."""

import re
from pathlib import Path
from typing import Any

import pytest

from gateway.config import ConfigError, load_config, options
from gateway.roseinfer.flags import FLAGS, SAME_NAME, UNUSED, translated

WEIGHTS = {"checkpoint_path": "tiny.pt", "tokenizer_name": "gpt2"}
# All flags of python -m rosellm.roseinfer.server at 5d095df, without --no-.
THEIRS = (
    *("checkpoint-path", "tokenizer-name", "hf-model-id", "device", "pd-disaggregation", "pd-prefill-device"),
    *("pd-decode-device", "pd-prefill-max-batch-size", "pd-prefill-max-tokens", "amp", "bf16"),
    *("prefill-attn-backend", "decode-attn-backend", "paged-attn", "cuda-graph", "chunked-prefill"),
    *("prefill-chunk-size", "stop-on-eos", "do-sample", "temperature", "top-k", "top-p", "async-streaming"),
    *("max-inflight-requests", "kv-cache-max-concurrency", "kv-cache-max-tokens", "kv-cache-mem-fraction"),
    *("gpu-memory-utilization", "prefix-cache-max-entries", "stream-interval", "max-batch-size", "gc-freeze"),
    *("gc-warn-ms", "gc-log-all", "fast-sse", "prefix-cache", "overlap-schedule", "fused-ops", "fused-mlp"),
    *("fused-sampler", "fused-kv-append", "engine-process", "mp-ipc", "mp-start-timeout-s", "mp-max-recv-per-iter"),
    *("mp-fill-target", "mp-flat-events", "mp-thread-cap", "mp-affinity", "mp-api-cpus", "mp-engine-cpus"),
    *("mp-async-admit", "mp-tokenize-workers", "host", "port"),
)


def test_every_flag_of_theirs_is_taken() -> None:
    ours = {option.name for option in (*FLAGS, *options())} | set(UNUSED)
    assert {name.replace("-", "_") for name in THEIRS} <= ours


def test_no_flag_is_there_twice() -> None:
    names = [option.name for option in (*FLAGS, *options())] + list(UNUSED)
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ({}, {"model": "tiny.pt", "tokenizer": "gpt2", "generate_do_sample": False, "dtype": "auto"}),
        ({"amp": False}, {"dtype": "float32"}),
        ({"bf16": True}, {"dtype": "bfloat16"}),
        ({"bf16": True, "amp": False}, {"dtype": "float32"}),
        ({"do_sample": True, "stop_on_eos": False}, {"generate_do_sample": True, "generate_stop_on_eos": False}),
        ({"temperature": "0.8", "top_k": "40", "top_p": "0.9"}, {"generate_temperature": 0.8, "generate_top_k": 40}),
        ({"top_p": "0.9"}, {"generate_top_p": 0.9}),
        ({"device": "cpu", "host": "0.0.0.0", "port": "8080"}, {"device": "cpu", "host": "0.0.0.0", "port": 8080}),
        ({"max_batch_size": "8", "kv_cache_max_concurrency": "4"}, {"max_seqs": 4}),
        ({"max_batch_size": "16", "kv_cache_max_concurrency": "0"}, {"max_seqs": 16}),
        ({"kv_cache_max_concurrency": "0"}, {"max_seqs": 0}),
        ({"max_inflight_requests": "5"}, {"limit_concurrency": 5}),
        ({"gpu_memory_utilization": "0.5"}, {"gpu_memory_fraction": 0.5}),
        ({"gpu_memory_utilization": "0.0"}, {"gpu_memory_fraction": 0.9}),
        ({"prefix_cache": False}, {"prefix_caching": False}),
        ({"block_size": "32"}, {"block_size": 32}),
    ],
)
def test_what_flags_mean(typed: dict[str, str | bool], expected: dict[str, Any]) -> None:
    values, notes = translated({**WEIGHTS, **typed})
    config = load_config(values)
    assert notes == []
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ({"hf_model_id": "gpt2"}, ("openai-community/gpt2", "")),
        ({"hf_model_id": "gpt2", "tokenizer_name": "gpt2"}, ("openai-community/gpt2", "")),
        ({"hf_model_id": "Qwen/Qwen3-0.6B"}, ("Qwen/Qwen3-0.6B", "")),
        ({"hf_model_id": "org/model", "tokenizer_name": "folder"}, ("org/model", "folder")),
        ({"checkpoint_path": "model.gguf"}, ("model.gguf", "")),
        ({"model": "SmolLM2-135M-Instruct"}, ("SmolLM2-135M-Instruct", "")),
    ],
)
def test_which_model_is_meant(typed: dict[str, str | bool], expected: tuple[str, str]) -> None:
    config = load_config(translated(typed).values)
    assert (config.model, config.tokenizer) == expected


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ({}, "--checkpoint-path is required when --hf-model-id is not set"),
        ({"checkpoint_path": "a.pt"}, "--tokenizer-name is required"),
        ({"checkpoint_path": "a.pt", "hf_model_id": "gpt2"}, "name two models"),
    ],
)
def test_what_is_missing_is_named(typed: dict[str, str | bool], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        translated(typed)


@pytest.mark.parametrize("name", UNUSED)
def test_what_has_no_effect_is_told(name: str) -> None:
    is_switch = UNUSED[name][0] == "switch"
    values, (note,) = translated({**WEIGHTS, name: False if is_switch else "3"})
    assert values == translated(WEIGHTS).values
    assert note.startswith(f"--{'no-' * is_switch}{name.replace('_', '-')} has no effect: ")


def test_meanings_are_options() -> None:
    assert set(SAME_NAME.values()) <= {option.name for option in options()}


def test_options_that_stand_for_them_are_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "roseinfer.md").read_text()
    assert {option.flag for option in FLAGS} - set(re.findall(r"--[a-z0-9-]+", page)) <= {"--amp"}
