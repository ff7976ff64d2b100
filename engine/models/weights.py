"""The tensors of a decoder, fused for the forward pass, and the one table from checkpoint names to places in them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.models import rope
from engine.models.spec import ModelSpec


@dataclass(slots=True)
class LayerWeights:
    attn_norm: Tensor  # [hidden]
    qkv: Tensor  # [q + k + v, hidden]
    qkv_bias: Tensor | None
    q_norm: Tensor | None  # [head_dim]
    k_norm: Tensor | None
    o: Tensor  # [hidden, q]
    o_bias: Tensor | None
    ffn_norm: Tensor
    gate_up: Tensor  # [2 * ffn, hidden]
    gate_up_bias: Tensor | None
    down: Tensor  # [hidden, ffn]
    down_bias: Tensor | None


@dataclass(slots=True)
class Weights:
    embed: Tensor  # [held_ids, hidden]
    layers: list[LayerWeights]
    final_norm: Tensor
    head: Tensor  # [held_ids, hidden]; the embedding itself where tied

    def tensors(self) -> Iterable[Tensor]:
        """Each stored tensor once."""
        yield self.embed
        yield self.final_norm
        if self.head is not self.embed:
            yield self.head
        for layer in self.layers:
            for name in LayerWeights.__dataclass_fields__:
                tensor = getattr(layer, name)
                if tensor is not None:
                    yield tensor

    @property
    def num_parameters(self) -> int:
        return sum(tensor.numel() for tensor in self.tensors())

    @property
    def num_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors())


def allocate(spec: ModelSpec, dtype: torch.dtype, device: torch.device) -> Weights:
    """Uninitialised weights of the spec's shapes."""

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    def optional(wanted: bool, *shape: int) -> Tensor | None:
        return empty(*shape) if wanted else None

    qkv_rows = spec.q_size + 2 * spec.kv_size
    layers = [
        LayerWeights(
            attn_norm=empty(spec.hidden),
            qkv=empty(qkv_rows, spec.hidden),
            qkv_bias=optional(spec.qkv_bias, qkv_rows),
            q_norm=optional(spec.qk_norm, spec.head_dim),
            k_norm=optional(spec.qk_norm, spec.head_dim),
            o=empty(spec.hidden, spec.q_size),
            o_bias=optional(spec.o_bias, spec.hidden),
            ffn_norm=empty(spec.hidden),
            gate_up=empty(2 * spec.ffn, spec.hidden),
            gate_up_bias=optional(spec.mlp_bias, 2 * spec.ffn),
            down=empty(spec.hidden, spec.ffn),
            down_bias=optional(spec.mlp_bias, spec.hidden),
        )
        for _ in range(spec.num_layers)
    ]
    embed = empty(spec.held_ids, spec.hidden)
    head = embed if spec.tied else empty(spec.held_ids, spec.hidden)
    return Weights(embed=embed, layers=layers, final_norm=empty(spec.hidden), head=head)


def num_weights(spec: ModelSpec) -> int:
    return allocate(spec, torch.float32, torch.device("meta")).num_parameters


def destinations(spec: ModelSpec, weights: Weights) -> dict[str, Tensor]:
    """Where each tensor of a Hugging Face checkpoint goes: its name -> a view of the fused tensor."""
    table = {"model.embed_tokens.weight": weights.embed, "model.norm.weight": weights.final_norm}
    if not spec.tied:
        table["lm_head.weight"] = weights.head
    for index, layer in enumerate(weights.layers):
        for name, view in _layer_destinations(spec, layer):
            if view is not None:
                table[f"model.layers.{index}.{name}"] = view
    return table


def _layer_destinations(spec: ModelSpec, layer: LayerWeights) -> Iterable[tuple[str, Tensor | None]]:
    yield "input_layernorm.weight", layer.attn_norm
    yield "post_attention_layernorm.weight", layer.ffn_norm
    yield "self_attn.q_norm.weight", layer.q_norm
    yield "self_attn.k_norm.weight", layer.k_norm
    qkv = {"self_attn.q_proj": spec.q_size, "self_attn.k_proj": spec.kv_size, "self_attn.v_proj": spec.kv_size}
    gate_up = {"mlp.gate_proj": spec.ffn, "mlp.up_proj": spec.ffn}
    if spec.stored_fused:
        qkv, gate_up = {"self_attn.qkv_proj": sum(qkv.values())}, {"mlp.gate_up_proj": sum(gate_up.values())}
    yield from _split(layer.qkv, layer.qkv_bias, qkv)
    yield from _split(layer.o, layer.o_bias, {"self_attn.o_proj": spec.hidden})
    yield from _split(layer.gate_up, layer.gate_up_bias, gate_up)
    yield from _split(layer.down, layer.down_bias, {"mlp.down_proj": spec.hidden})


def _split(weight: Tensor, bias: Tensor | None, rows: dict[str, int]) -> Iterable[tuple[str, Tensor | None]]:
    """rows: of each tensor of the checkpoint, in order."""
    sizes = list(rows.values())
    yield from zip((f"{name}.weight" for name in rows), torch.split(weight, sizes), strict=True)
    if bias is not None:
        yield from zip((f"{name}.bias" for name in rows), torch.split(bias, sizes), strict=True)


def arrange(spec: ModelSpec, weights: Weights) -> None:
    """To be called once all tensors are in place: brings the heads of q and k into the order that rope needs. Biases of
    sums over ranks stay with the first."""
    if spec.rank:
        for layer in weights.layers:
            layer.o_bias = layer.down_bias = None
    if spec.rotary_dim == spec.head_dim:
        return
    order = rope.order(spec)
    for layer in weights.layers:
        for tensor in (layer.qkv, layer.qkv_bias, layer.q_norm, layer.k_norm):
            if tensor is not None:
                heads = tensor[: spec.q_size + spec.kv_size].view(-1, spec.head_dim, *tensor.shape[1:])
                heads.copy_(heads[:, order])
