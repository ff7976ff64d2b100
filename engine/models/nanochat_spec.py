"""What a nanochat checkpoint computes: its sizes, and what the code of its time did that no file says.

The architecture changed while its checkpoints kept one format. Which code trained a checkpoint is told by its tensors:

    neither value embeddings nor smear    October 2025; residual and x0 lambdas and windows since January 2026
    value embeddings, gates read 32       January 2026
    value embeddings, gates read 12       9 March 2026
    smear and backout                     14 March 2026, to this day
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.errors import ModelRefused
from engine.models.spec import ModelSpec

SOFTCAP = 15.0  # logits stay below it. The first week of March 2026 had 20, which no checkpoint of that week tells
SMEAR_CHANNELS = 24
LONGEST_CONTEXT = 10  # times that of the training: as far as its rotary tables reach
SIZES = ("sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd")


@dataclass(frozen=True, slots=True)
class Generation:
    """What differs besides the tensors that are there."""

    rope_theta: float
    rope_is_rounded: bool  # cos and sin are rounded to bfloat16, whatever is computed in
    sharpness: float  # what q and k are multiplied by after their norm
    gate_channels: int  # of the layer's input, that the gates of value embeddings read
    gate_scale: float
    window_divisor: int  # a short window is the context divided by this ...
    window_tile: int  # ... up to the next multiple of this

    def short_window(self, sequence_len: int) -> int:
        """Keys to the left of a token that it sees in layers with short windows."""
        if self.window_tile == 1:
            return sequence_len // self.window_divisor
        return -(-sequence_len // self.window_divisor // self.window_tile) * self.window_tile


FIRST = Generation(10_000.0, True, 1.0, 32, 2.0, 2, 1)
MARCH = Generation(100_000.0, False, 1.15, 12, 3.0, 3, 128)
SMEARED = Generation(100_000.0, False, 1.2, 12, 3.0, 4, 128)


@dataclass(frozen=True, slots=True)
class NanochatSpec(ModelSpec):
    """Of the base class's fields those are used that have a meaning here."""

    generation: Generation = FIRST
    value_layers: frozenset[int] = frozenset()  # that have value embeddings
    has_lambdas: bool = False
    smears: bool = False  # and takes the middle layer's output back out at the end

    @property
    def longest_context(self) -> int:
        return LONGEST_CONTEXT * self.context_length

    @property
    def middle_layer(self) -> int:
        return self.num_layers // 2


def spec_from_meta(config: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> NanochatSpec:
    """config: model_config of the meta file; shapes: of all tensors, by name. Raises ModelRefused."""
    for name in SIZES:
        if not isinstance(config.get(name), int) or config[name] < 1:
            raise ModelRefused(f"model_config.{name} of the checkpoint is {config.get(name)!r}, not a positive number")
    layers, heads, kv_heads, hidden = (config[name] for name in ("n_layer", "n_head", "n_kv_head", "n_embd"))
    if hidden % heads or heads % kv_heads or hidden // heads % 2:
        raise ModelRefused(f"{hidden} channels cannot be cut into {heads} heads, in {kv_heads} groups")
    value_layers = frozenset(layer for layer in range(layers) if f"value_embeds.{layer}.weight" in shapes)
    generation = _generation(shapes, layers)
    return NanochatSpec(
        architecture="nanochat",
        num_layers=layers,
        hidden=hidden,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=hidden // heads,
        rotary_dim=hidden // heads,
        ffn=4 * hidden,
        vocab_size=config["vocab_size"],
        norm_eps=0.0,
        rope_theta=generation.rope_theta,
        context_length=config["sequence_len"],
        tied=False,
        windows=_windows(config, generation),
        generation=generation,
        value_layers=value_layers,
        has_lambdas="resid_lambdas" in shapes,
        smears="smear_gate.weight" in shapes,
    )


def _generation(shapes: Mapping[str, Sequence[int]], layers: int) -> Generation:
    if "smear_gate.weight" in shapes:
        return SMEARED
    gates = (shapes.get(f"transformer.h.{layer}.attn.ve_gate.weight") for layer in range(layers))
    channels = {gate[-1] for gate in gates if gate}
    if not channels or channels == {FIRST.gate_channels}:
        return FIRST
    if channels == {MARCH.gate_channels}:
        return MARCH
    told = ", ".join(map(str, sorted(channels)))
    raise ModelRefused(f"the gates of the value embeddings read {told} channels; known are 12 and 32")


def _windows(config: Mapping[str, Any], generation: Generation) -> tuple[int | None, ...]:
    """Keys that each layer sees, the token itself included. Those that see all of them see all of the context that the
    model was trained with: before there were patterns, there was no bound."""
    if "window_pattern" not in config and generation is FIRST:
        return ()
    pattern = config.get("window_pattern", "L")
    if not isinstance(pattern, str) or not pattern or set(pattern.upper()) - {"S", "L"}:
        raise ModelRefused(f"model_config.window_pattern is {pattern!r}, not a pattern of S and L")
    layers, context = config["n_layer"], config["sequence_len"]
    short = [pattern.upper()[layer % len(pattern)] == "S" for layer in range(layers - 1)] + [False]
    return tuple((generation.short_window(context) if is_short else context) + 1 for is_short in short)
