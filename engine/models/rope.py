"""Rotary position embedding in the half-split convention of Hugging Face checkpoints (arXiv 2104.09864)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.models.spec import ModelSpec, RopeScaling


def inverse_frequencies(spec: ModelSpec, length: int, factors: Tensor | None = None) -> Tensor:
    """[rotary_dim / 2] float32, scaled as the spec says; `factors` divide them (GGUF's rope_freqs tensor).

    length: the longest context that is served.
    """
    exponents = torch.arange(0, spec.rotary_dim, 2, dtype=torch.int64).float() / spec.rotary_dim
    inverse = 1.0 / (spec.rope_theta**exponents)
    if factors is not None:
        return inverse / factors
    scaling = spec.rope_scaling
    if scaling is None:
        return inverse
    if scaling.kind == "linear":
        return inverse / scaling.factor
    if scaling.kind == "llama3":
        return _llama3(inverse, scaling)
    if scaling.kind == "longrope":
        fits = length <= scaling.original_context
        return inverse / torch.tensor(scaling.short_factors if fits else scaling.long_factors)
    return _yarn(inverse, scaling, spec)


def _llama3(inverse: Tensor, scaling: RopeScaling) -> Tensor:
    """Long wavelengths are stretched by the factor, short ones kept, those between blended linearly."""
    wavelengths = 2 * math.pi / inverse
    turns = scaling.original_context / wavelengths
    blend = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blend = blend.clamp(0.0, 1.0)
    return (1 - blend) * inverse / scaling.factor + blend * inverse


def _yarn(inverse: Tensor, scaling: RopeScaling, spec: ModelSpec) -> Tensor:
    def dimension_of(turns: float) -> float:
        period = scaling.original_context / (turns * 2 * math.pi)
        return spec.rotary_dim * math.log(period) / (2 * math.log(spec.rope_theta))

    low = max(math.floor(dimension_of(scaling.beta_fast)), 0)
    high = min(math.ceil(dimension_of(scaling.beta_slow)), spec.rotary_dim - 1)
    ramp = (torch.arange(spec.rotary_dim // 2).float() - low) / max(high - low, 0.001)
    stretched = ramp.clamp(0.0, 1.0)
    return stretched * inverse / scaling.factor + (1 - stretched) * inverse


def attention_factor(scaling: RopeScaling | None) -> float:
    """What cos and sin are multiplied by: 1, but for yarn (its section 3.4) and longrope."""
    if scaling is None or scaling.kind not in ("yarn", "longrope"):
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.factor <= 1:
        return 1.0
    if scaling.kind == "longrope":
        return math.sqrt(1 + math.log(scaling.factor) / math.log(scaling.original_context))
    return 0.1 * math.log(scaling.factor) + 1.0


def table(
    spec: ModelSpec, length: int, dtype: torch.dtype, device: torch.device, factors: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """cos and sin, each [length, head_dim / 2], computed in float32. Pairs that rope leaves alone have 1 and 0."""
    angles = torch.outer(torch.arange(length).float(), inverse_frequencies(spec, length, factors))
    scale, still = attention_factor(spec.rope_scaling), (spec.head_dim - spec.rotary_dim) // 2
    cos, sin = F.pad(angles.cos() * scale, (0, still), value=1.0), F.pad(angles.sin() * scale, (0, still))
    return cos.to(device, dtype), sin.to(device, dtype)


def order(spec: ModelSpec) -> list[int]:
    """Where rope turns a part of each head: which stored dimension stands at each place of a head of q or k, so that
    pairs are (i, i + head_dim / 2) all the same. Products of q and k do not depend on it.

        stored:    | first of pairs | second of pairs |  left alone: a, b  |
        in order:  | first of pairs |  a  | second of pairs |  b  |
    """
    half, turned = spec.head_dim // 2, spec.rotary_dim // 2
    stored = list(range(spec.head_dim))
    alone = stored[2 * turned :]
    return stored[:turned] + alone[: half - turned] + stored[turned : 2 * turned] + alone[half - turned :]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x: [tokens, heads, head_dim]; cos, sin: [tokens, 1, head_dim / 2]. Pairs are (i, i + head_dim / 2)."""
    left, right = x.chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)
