"""What distinguishes one Llama-like decoder from another, as plain numbers, read from config.json or GGUF metadata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from engine.errors import ModelRefused


class Shape(Protocol):
    """What the cache, the limits and people need to know of any decoder."""

    @property
    def architecture(self) -> str: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def hidden(self) -> int: ...
    @property
    def num_kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def kv_size(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def context_length(self) -> int: ...
    @property
    def longest_context(self) -> int: ...


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the trained context.

    linear: position / factor. llama3: low frequencies / factor, smooth between (Llama 3.1's config). yarn: arXiv
    2309.00071. longrope: arXiv 2402.13753, one divisor a frequency; which of its two lists counts is decided once, by
    the longest context that is served (rope.table), for keys in the cache cannot be turned anew.
    """

    kind: Literal["linear", "llama3", "yarn", "longrope"]
    factor: float
    original_context: int = 8192
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None  # what cos and sin are multiplied by; None: as the kind's paper has it
    short_factors: tuple[float, ...] = ()  # longrope: up to original_context
    long_factors: tuple[float, ...] = ()  # beyond


@dataclass(frozen=True, slots=True)
class ModelSpec:
    architecture: str
    num_layers: int
    hidden: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rotary_dim: int  # leading dimensions of each head that rope turns; even, often all
    ffn: int
    vocab_size: int
    norm_eps: float
    rope_theta: float
    context_length: int
    tied: bool  # the output head is the embedding
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False  # RMSNorm of each head of q and k, before rope
    rope_scaling: RopeScaling | None = None
    windows: tuple[int | None, ...] = ()  # keys each layer sees, itself included; None: all
    nope_layers: frozenset[int] = frozenset()  # layers without rope
    stored_fused: bool = False  # the checkpoint too has q, k, v in one tensor, and gate and up in one
    rank: int = 0  # of a tensor-parallel group, whose part of heads, ffn and vocabulary this is
    num_ranks: int = 1

    @property
    def held_ids(self) -> int:
        """Rows of embedding and head that a rank holds, some of the last one's for no id: all hold as many."""
        return -(-self.vocab_size // self.num_ranks)

    @property
    def first_id(self) -> int:
        return self.rank * self.held_ids

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim

    @property
    def longest_context(self) -> int:
        """What may be asked for: more than it was trained with only where the model's own code goes on there too."""
        return self.context_length

    def window(self, layer: int) -> int | None:
        return self.windows[layer] if self.windows else None


@dataclass(frozen=True, slots=True)
class Family:
    """What config.json of an architecture leaves unsaid."""

    qkv_bias: bool | None = None  # None: config's attention_bias
    o_bias: bool | None = None
    qk_norm: bool = False
    windowed: Literal["never", "always", "if_asked"] = "never"  # when sliding_window counts
    partial_rotary: bool = False  # knows partial_rotary_factor
    stored_fused: bool = False


FAMILIES: Mapping[str, Family] = {
    "LlamaForCausalLM": Family(),
    "MistralForCausalLM": Family(qkv_bias=False, o_bias=False, windowed="always"),
    "Phi3ForCausalLM": Family(  # Phi-3, Phi-3.5, Phi-4, Phi-4-mini
        qkv_bias=False, o_bias=False, windowed="always", partial_rotary=True, stored_fused=True
    ),
    "Qwen2ForCausalLM": Family(qkv_bias=True, o_bias=False, windowed="if_asked"),
    "Qwen3ForCausalLM": Family(qk_norm=True, windowed="if_asked"),
    "SmolLM3ForCausalLM": Family(windowed="if_asked"),
}
SMOLLM3_NOPE_STEP = 4  # every fourth layer of SmolLM3 has no rope where its config does not say


def spec_from_config(config: Mapping[str, Any]) -> ModelSpec:
    """Reads a Hugging Face config.json. Raises ModelRefused for what this engine cannot compute exactly."""
    names = config.get("architectures") or ["(none named)"]
    family = FAMILIES.get(names[0])
    if family is None:
        raise ModelRefused(f"architecture {names[0]} is not supported; supported: {', '.join(sorted(FAMILIES))}")
    if config.get("hidden_act", "silu") != "silu":
        raise ModelRefused(f"activation {config['hidden_act']!r} is not supported; supported: silu")
    if "quantization_config" in config:
        method = config["quantization_config"].get("quant_method", "unknown")
        raise ModelRefused(f"weights quantised by {method!r} are not supported in safetensors; use unquantised weights")
    try:
        return _build(names[0], family, config)
    except KeyError as missing:
        raise ModelRefused(f"config.json has no {missing}") from None


def _build(name: str, family: Family, config: Mapping[str, Any]) -> ModelSpec:
    heads, layers = config["num_attention_heads"], config["num_hidden_layers"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rotary_dim = _rotary_dim(name, family, rope, config, head_dim)
    attention_bias = bool(config.get("attention_bias", False))
    return ModelSpec(
        architecture=name,
        num_layers=layers,
        hidden=config["hidden_size"],
        num_heads=heads,
        num_kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=head_dim,
        rotary_dim=rotary_dim,
        ffn=config["intermediate_size"],
        vocab_size=config["vocab_size"],
        norm_eps=config["rms_norm_eps"],
        rope_theta=float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0),
        context_length=config["max_position_embeddings"],
        tied=bool(config.get("tie_word_embeddings", name == "SmolLM3ForCausalLM")),
        qkv_bias=attention_bias if family.qkv_bias is None else family.qkv_bias,
        o_bias=attention_bias if family.o_bias is None else family.o_bias,
        mlp_bias=bool(config.get("mlp_bias", False)),
        qk_norm=family.qk_norm,
        rope_scaling=_rope_scaling(name, rope, config, rotary_dim),
        windows=_windows(family, config, layers),
        nope_layers=_nope_layers(name, config, layers),
        stored_fused=family.stored_fused,
    )


def _rotary_dim(name: str, family: Family, rope: Mapping[str, Any], config: Mapping[str, Any], head_dim: int) -> int:
    share = float(rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0)
    if share != 1.0 and not family.partial_rotary:
        raise ModelRefused(f"partial rotary embeddings are not supported in {name}")
    return int(head_dim * share)


def _rope_scaling(name: str, rope: Mapping[str, Any], config: Mapping[str, Any], rotary_dim: int) -> RopeScaling | None:
    kind: Any = rope.get("rope_type") or rope.get("type") or "default"
    if name == "Phi3ForCausalLM" and kind in ("su", "yarn"):
        kind = "longrope"  # its names in older files
    if any(isinstance(value, Mapping) for value in rope.values()):
        raise ModelRefused("rotary embeddings that differ by the type of layer are not supported")
    if kind == "default":
        return None
    if kind not in ("linear", "llama3", "yarn", "longrope"):
        raise ModelRefused(f"rope scaling {kind!r} is not supported; supported: linear, llama3, yarn, longrope")
    if rope.get("truncate") is False or rope.get("mscale") or rope.get("mscale_all_dim"):
        raise ModelRefused(f"rope scaling {kind!r} with truncate, mscale or mscale_all_dim is not supported")
    context = config["max_position_embeddings"]
    original = config.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings")
    original = int(original or context)
    by_ratio = kind in ("yarn", "longrope") and not rope.get("factor")
    return RopeScaling(
        kind=kind,
        factor=context / original if by_ratio else float(rope["factor"]),
        original_context=original,
        low_freq_factor=float(rope.get("low_freq_factor", 1.0)),
        high_freq_factor=float(rope.get("high_freq_factor", 4.0)),
        beta_fast=float(rope.get("beta_fast") or 32.0),
        beta_slow=float(rope.get("beta_slow") or 1.0),
        attention_factor=rope.get("attention_factor"),
        short_factors=_factors(rope, "short_factor", rotary_dim) if kind == "longrope" else (),
        long_factors=_factors(rope, "long_factor", rotary_dim) if kind == "longrope" else (),
    )


def _factors(rope: Mapping[str, Any], key: str, rotary_dim: int) -> tuple[float, ...]:
    factors = tuple(float(factor) for factor in rope[key])
    if len(factors) != rotary_dim // 2:
        raise ModelRefused(f"{key} of rope scaling 'longrope' has {len(factors)} numbers, expected {rotary_dim // 2}")
    return factors


def _windows(family: Family, config: Mapping[str, Any], layers: int) -> tuple[int | None, ...]:
    window = config.get("sliding_window")
    asked = family.windowed == "always" or (family.windowed == "if_asked" and config.get("use_sliding_window", False))
    if not window or not asked or window >= config["max_position_embeddings"]:
        return ()
    if config.get("layer_types"):
        return tuple(window if kind == "sliding_attention" else None for kind in config["layer_types"])
    first = 0 if family.windowed == "always" else config.get("max_window_layers", layers)
    return tuple(window if layer >= first else None for layer in range(layers))


def _nope_layers(name: str, config: Mapping[str, Any], layers: int) -> frozenset[int]:
    """SmolLM3's no_rope_layers: 1 where a layer has rope, 0 where it has none."""
    uses_rope = config.get("no_rope_layers")
    if uses_rope is None and name == "SmolLM3ForCausalLM":
        step = config.get("no_rope_layer_interval", SMOLLM3_NOPE_STEP)
        return frozenset(range(step - 1, layers, step))
    return frozenset(layer for layer, rope in enumerate(uses_rope or ()) if not rope)
