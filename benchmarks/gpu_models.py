"""What the GPU benchmark serves: model shapes as folders that the gateway and the engine take, and the workloads.

The folders hold a config.json for random weights, and a tokenizer.json with as many tokens as the model has: bytes,
then words of letters, and no merges. Text costs the gateway what real text does; prompts are sent as token ids.
"""

from __future__ import annotations

import itertools
import json
import random
import string
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama8b": {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 128_256,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "bos_token_id": 128_000,
        "eos_token_id": 128_001,
        "rope_theta": 500_000.0,
        "rope_scaling": LLAMA3_ROPE,
    },
    "qwen06b": {
        "architectures": ["Qwen3ForCausalLM"],
        "vocab_size": 151_936,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40_960,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "bos_token_id": 151_643,
        "eos_token_id": 151_645,
        "rope_theta": 1_000_000.0,
    },
    "tiny": {
        "architectures": ["Qwen3ForCausalLM"],
        "vocab_size": 12_288,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "bos_token_id": 1000,
        "eos_token_id": 1001,
        "rope_theta": 10_000.0,
    },
}


def model_folder(config: dict[str, Any], path: Path) -> Path:
    """The folder of a model of this configuration, made if need be."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    tokenizer = path / "tokenizer.json"
    if not tokenizer.exists():
        tokenizer.write_text(json.dumps(_tokenizer(config["vocab_size"])))
    return path


def _tokenizer(vocab_size: int) -> dict[str, Any]:
    vocab = dict(zip(itertools.islice(_tokens(), vocab_size), range(vocab_size), strict=True))
    return {
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        "added_tokens": [],
    }


def _tokens() -> Iterator[str]:
    """In the spelling of byte-level BPE: every byte, then words after a space, the short ones first."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    yield from map(chr, printable)
    yield from (chr(256 + index) for index in range(256 - len(printable)))
    for length in itertools.count(2):
        yield from ("Ġ" + "".join(letters) for letters in itertools.product(string.ascii_lowercase, repeat=length))


def spelled_bytes(vocab_size: int) -> list[bytes]:
    """What each id of such a tokenizer stands for."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    single = [bytes([byte]) for byte in [*printable, *others]]
    words = itertools.islice(_tokens(), 256, vocab_size)
    return [*single, *(word.replace("Ġ", " ").encode() for word in words)][:vocab_size]


Prompts = list[list[int]]


@dataclass(frozen=True, slots=True)
class Workload:
    """All at once; out[i] tokens for prompt i, whatever they are."""

    prompts: Prompts
    out: list[int]

    @property
    def num_in(self) -> int:
        return sum(map(len, self.prompts))

    @property
    def num_out(self) -> int:
        return sum(self.out)


MAX_ID = 10_000  # of prompts, in all these workloads


def w1(num: int, lo: int, hi: int, seed: int = 0) -> Workload:
    """nano-vllm's published benchmark for num=256, lo=100, hi=1024: its order of draws."""
    rng = random.Random(seed)
    prompts = [[rng.randint(0, MAX_ID) for _ in range(rng.randint(lo, hi))] for _ in range(num)]
    return Workload(prompts, [rng.randint(lo, hi) for _ in range(num)])


def fixed(num: int, num_in: int, num_out: int, seed: int) -> Workload:
    rng = random.Random(seed)
    return Workload([[rng.randint(0, MAX_ID) for _ in range(num_in)] for _ in range(num)], [num_out] * num)
