"""Products with weights, which on CPUs are in the order that oneDNN multiplies fastest: packed once, at start.

Unpacked, each product first brings the weights into that order. Packed, those of one decode step of a model of 135 M
take two thirds of the time at 1 to 8 rows, and less at any number: docs/log.md. The numbers are the same.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.models.weights import LayerWeights, Weights

PRODUCTS = ("qkv", "o", "gate_up", "down")  # fields of LayerWeights


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias. x: [rows, in]; weight: [out, in], packed or not."""
    if weight.is_mkldnn:
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return result
    return F.linear(x, weight, bias)


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    there: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if device.type != "cpu" or dtype != torch.bfloat16 or not there:
        return False
    return hasattr(torch.ops.mkldnn, "_reorder_linear_weight") and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def pack(weights: Weights) -> None:
    """In place: what was there before is freed, tensor by tensor. A tied head becomes a tensor of its own."""
    for layer in weights.layers:
        _pack_layer(layer)
    weights.head = packed(weights.head)


def _pack_layer(layer: LayerWeights) -> None:
    for name in PRODUCTS:
        setattr(layer, name, packed(getattr(layer, name)))


def packed(weight: Tensor) -> Tensor:
    ordered: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
    return ordered
