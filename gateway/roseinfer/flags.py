"""The flags of roseinfer's server as options of this one. Imported for every --help, so it imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from gateway.config import ConfigError, Kind, Option

Given = Mapping[str, str | bool]

FLAGS: Sequence[Option] = (
    Option("checkpoint_path", "text", (), "", "A checkpoint of rosellm, or anything that --model takes."),
    Option("tokenizer_name", "text", (), "", "Folder or name on the hub of its tokenizer, such as gpt2."),
    Option("hf_model_id", "text", (), "", "A model on the hub instead; GPT-2 without its owner's name, too."),
    Option("amp", "switch", (), True, "--no-amp: compute in float32."),
    Option("bf16", "switch", (), False, "Compute in bfloat16. With neither: as --dtype auto has it."),
    Option("stop_on_eos", "switch", (), True, "/generate: the end of a text ends the answer."),
    Option("do_sample", "switch", (), False, "/generate: draw tokens; otherwise the most likely."),
    Option("temperature", "number", (), 1.0, "/generate: of draws."),
    Option("top_k", "integer", (), 0, "/generate: draw from so many tokens; 0: from all."),
    Option("top_p", "number", (), 1.0, "/generate: draw from the likeliest that sum to this."),
    Option("max_batch_size", "integer", (), 0, "As --max-seqs."),
    Option("kv_cache_max_concurrency", "integer", (), 0, "As --max-seqs; the smaller one counts."),
    Option("max_inflight_requests", "integer", (), 0, "As --limit-concurrency."),
    Option("gpu_memory_utilization", "number", (), 0.0, "As --gpu-memory-fraction."),
    Option("prefix_cache", "switch", (), True, "As --prefix-caching."),
)
SAME_NAME = {  # roseinfer's flag -> the option with the same meaning
    "stop_on_eos": "generate_stop_on_eos",
    "do_sample": "generate_do_sample",
    "temperature": "generate_temperature",
    "top_k": "generate_top_k",
    "top_p": "generate_top_p",
    "max_inflight_requests": "limit_concurrency",
    "prefix_cache": "prefix_caching",
}
OWNERS = {
    "distilgpt2": "distilbert",
    **dict.fromkeys(("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"), "openai-community"),
}


def _unused(kind: Kind, why: str, *names: str) -> dict[str, tuple[Kind, str]]:
    return dict.fromkeys(names, (kind, why))


_ALWAYS = "it is always so"
_ONE_ENGINE = "there is one engine, on one device"
_KERNELS = "the engine chooses its kernels; see --attention"
_CACHE = "blocks that nobody uses are kept as long as there is room; see --kv-cache-memory"
_GATEWAY = "the gateway has a process of its own, and settles this by itself"
UNUSED: Mapping[str, tuple[Kind, str]] = {  # flags without effect, and why
    **_unused("switch", _ONE_ENGINE, "pd_disaggregation"),
    **_unused("text", _ONE_ENGINE, "pd_prefill_device", "pd_decode_device"),
    **_unused("integer", _ONE_ENGINE, "pd_prefill_max_batch_size", "pd_prefill_max_tokens"),
    **_unused("text", _KERNELS, "prefill_attn_backend", "decode_attn_backend"),
    **_unused("switch", _KERNELS, "cuda_graph", "fused_ops", "fused_mlp", "fused_sampler", "fused_kv_append"),
    **_unused("switch", _ALWAYS, "paged_attn", "chunked_prefill", "async_streaming", "overlap_schedule"),
    **_unused("switch", _ALWAYS, "gc_freeze", "fast_sse", "engine_process"),
    **_unused("integer", "see --max-step-tokens", "prefill_chunk_size"),
    **_unused("integer", _CACHE, "kv_cache_max_tokens", "prefix_cache_max_entries"),
    **_unused("number", "see --gpu-memory-fraction", "kv_cache_mem_fraction"),
    **_unused("integer", "every token is sent as it comes, and what waits is sent together", "stream_interval"),
    **_unused("number", "the event loop's delays are in /metrics", "gc_warn_ms"),
    **_unused("switch", "the event loop's delays are in /metrics", "gc_log_all"),
    **_unused("text", _GATEWAY, "mp_ipc", "mp_api_cpus", "mp_engine_cpus"),
    **_unused("number", _GATEWAY, "mp_start_timeout_s"),
    **_unused("integer", _GATEWAY, "mp_max_recv_per_iter", "mp_tokenize_workers"),
    **_unused("switch", _GATEWAY, "mp_fill_target", "mp_flat_events", "mp_thread_cap", "mp_affinity"),
    **_unused("switch", _GATEWAY, "mp_async_admit"),
}
UNUSED_FLAGS: Sequence[Option] = tuple(Option(name, kind, (), "", why) for name, (kind, why) in UNUSED.items())


class Translated(NamedTuple):
    values: dict[str, str | bool]  # for load_config
    notes: list[str]  # what is told of flags without effect


def translated(given: Given) -> Translated:
    """`given`: roseinfer's flags that were typed, and options of `serve`, before which they go. Raises ConfigError."""
    own = {option.name for option in (*FLAGS, *UNUSED_FLAGS)}
    values = {name: value for name, value in given.items() if name not in own}
    typed = {name: value for name, value in given.items() if name in own}
    values |= _model(typed, values)
    values |= {SAME_NAME[name]: value for name, value in typed.items() if name in SAME_NAME}
    values |= _numbers(typed)
    if typed.get("amp") is False:
        values["dtype"] = "float32"
    elif typed.get("bf16"):
        values["dtype"] = "bfloat16"
    notes = [
        f"{_spelled(name, value)} has no effect: {UNUSED[name][1]}" for name, value in typed.items() if name in UNUSED
    ]
    return Translated(values, notes)


def _spelled(name: str, value: str | bool) -> str:
    return ("--no-" if value is False else "--") + name.replace("_", "-")


def _model(typed: Given, values: Given) -> dict[str, str | bool]:
    path, on_hub = str(typed.get("checkpoint_path", "")), str(typed.get("hf_model_id", ""))
    tokenizer = str(typed.get("tokenizer_name", ""))
    if path and on_hub:
        raise ConfigError("--checkpoint-path and --hf-model-id name two models; give one")
    if not path and not on_hub and "model" not in values:
        raise ConfigError("--checkpoint-path is required when --hf-model-id is not set")
    if path.endswith((".pt", ".pth", ".ckpt")) and not tokenizer and "tokenizer" not in values:
        raise ConfigError("--tokenizer-name is required with a checkpoint, for it holds none")
    found: dict[str, str | bool] = {}
    if path or on_hub:
        found["model"] = path or _with_owner(on_hub)
    if tokenizer and tokenizer != on_hub:
        found["tokenizer"] = tokenizer
    return found


def _with_owner(name: str) -> str:
    return f"{OWNERS[name]}/{name}" if name in OWNERS and not Path(name).exists() else name


def _numbers(typed: Given) -> dict[str, str | bool]:
    """0 means there what is not given means here."""
    sizes = [str(typed[name]) for name in ("max_batch_size", "kv_cache_max_concurrency") if name in typed]
    wanted = [size for size in sizes if size.strip() != "0"]
    found: dict[str, str | bool] = {}
    if wanted:
        found["max_seqs"] = min(wanted, key=int) if all(size.isdecimal() for size in wanted) else wanted[0]
    share = typed.get("gpu_memory_utilization")
    if share is not None and share not in ("0", "0.0"):
        found["gpu_memory_fraction"] = share
    return found
