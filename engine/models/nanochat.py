"""nanochat's forward pass: norms without weights, rope before the norm of q and k, squared ReLU, capped logits; in
later generations value embeddings, windows, the first embedding mixed in again, smear and backout.

Smear adds a share of the previous token's embedding to each token's. It looks like the state of a recurrence, but the
previous token's id is all that it needs: so it is computed anew wherever a step begins, and pages, chunks, prefix hits
and preemption change nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.attention.base import AttentionBackend
from engine.batch import BatchView
from engine.kvcache import KVCache
from engine.models import rope
from engine.models.nanochat_spec import SMEAR_CHANNELS, SOFTCAP, NanochatSpec
from engine.models.products import linear, packed


@dataclass(slots=True)
class NanochatLayer:
    qkv: Tensor  # [q + k + v, hidden]
    o: Tensor  # [hidden, q]
    up: Tensor  # [ffn, hidden]
    down: Tensor  # [hidden, ffn]
    value_embed: Tensor | None  # [vocab, kv]
    value_gate: Tensor | None  # [kv_heads, gate_channels]


@dataclass(slots=True)
class NanochatWeights:
    embed: Tensor  # [vocab, hidden]
    head: Tensor  # [vocab, hidden]
    layers: list[NanochatLayer]
    resid_lambdas: Tensor | None  # [layers] float32
    x0_lambdas: Tensor | None
    smear_gate: Tensor | None  # [1, SMEAR_CHANNELS]
    smear_lambda: Tensor | None  # [1]
    backout_lambda: Tensor | None  # [1]

    def tensors(self) -> Iterator[Tensor]:
        parts: list[NanochatWeights | NanochatLayer] = [self, *self.layers]
        for part in parts:
            values = (getattr(part, field.name) for field in fields(part))
            yield from (value for value in values if isinstance(value, Tensor))

    @property
    def num_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors())

    @property
    def num_parameters(self) -> int:
        return sum(tensor.numel() for tensor in self.tensors())


def pack(weights: NanochatWeights) -> None:
    """Into the order in which oneDNN multiplies fastest; what was there before is freed, tensor by tensor."""
    for layer in weights.layers:
        for name in ("qkv", "o", "up", "down"):
            setattr(layer, name, packed(getattr(layer, name)))
    weights.head = packed(weights.head)


def allocate(spec: NanochatSpec, dtype: torch.dtype, device: torch.device) -> NanochatWeights:
    """Uninitialised."""

    def empty(*shape: int, wanted: bool = True) -> Any:
        return torch.empty(shape, dtype=dtype, device=device) if wanted else None

    def lambdas() -> Tensor | None:
        return torch.empty(spec.num_layers, device=device) if spec.has_lambdas else None

    layers = [
        NanochatLayer(
            qkv=empty(spec.q_size + 2 * spec.kv_size, spec.hidden),
            o=empty(spec.hidden, spec.q_size),
            up=empty(spec.ffn, spec.hidden),
            down=empty(spec.hidden, spec.ffn),
            value_embed=empty(spec.vocab_size, spec.kv_size, wanted=layer in spec.value_layers),
            value_gate=empty(spec.num_kv_heads, spec.generation.gate_channels, wanted=layer in spec.value_layers),
        )
        for layer in range(spec.num_layers)
    ]
    return NanochatWeights(
        embed=empty(spec.vocab_size, spec.hidden),
        head=empty(spec.vocab_size, spec.hidden),
        layers=layers,
        resid_lambdas=lambdas(),
        x0_lambdas=lambdas(),
        smear_gate=empty(1, SMEAR_CHANNELS, wanted=spec.smears),
        smear_lambda=empty(1, wanted=spec.smears),
        backout_lambda=empty(1, wanted=spec.smears),
    )


def destinations(spec: NanochatSpec, weights: NanochatWeights) -> dict[str, Tensor]:
    """Where each tensor of a checkpoint goes."""
    table: dict[str, Tensor | None] = {
        "transformer.wte.weight": weights.embed,
        "lm_head.weight": weights.head,
        "resid_lambdas": weights.resid_lambdas,
        "x0_lambdas": weights.x0_lambdas,
        "smear_gate.weight": weights.smear_gate,
        "smear_lambda": weights.smear_lambda,
        "backout_lambda": weights.backout_lambda,
    }
    for index, layer in enumerate(weights.layers):
        q, k, v = torch.split(layer.qkv, [spec.q_size, spec.kv_size, spec.kv_size])
        block = f"transformer.h.{index}"
        table |= {
            f"{block}.attn.c_q.weight": q,
            f"{block}.attn.c_k.weight": k,
            f"{block}.attn.c_v.weight": v,
            f"{block}.attn.c_proj.weight": layer.o,
            f"{block}.attn.ve_gate.weight": layer.value_gate,
            f"{block}.mlp.c_fc.weight": layer.up,
            f"{block}.mlp.c_proj.weight": layer.down,
            f"value_embeds.{index}.weight": layer.value_embed,
        }
    return {name: view for name, view in table.items() if view is not None}


class NanochatDecoder:
    """Weights, rotary tables and the cache that it writes. Holds no state of any sequence."""

    def __init__(
        self,
        spec: NanochatSpec,
        weights: NanochatWeights,
        cache: KVCache,
        attention: AttentionBackend[Any],
        max_model_len: int,
    ) -> None:
        self.spec = spec
        self.weights = weights
        self.cache = cache
        self.attention = attention
        self._cos, self._sin = _rope_table(spec, max_model_len, weights.embed)
        self._lambdas = _pairs(weights)
        windows = (spec.window(layer) for layer in range(spec.num_layers))
        self._windows = [None if window is None or window >= max_model_len else window for window in windows]
        self._scale = spec.head_dim**-0.5 * spec.generation.sharpness**2

    @torch.inference_mode()
    def forward(self, view: BatchView, asked: Tensor | None = None) -> Tensor:
        """Hidden states before the final norm: [tokens, hidden], or [asked, hidden] of the rows `asked`. Writes keys
        and values of every row."""
        x = first = self._embed(view)
        middle = None
        cos, sin = self._cos[view.positions, None], self._sin[view.positions, None]  # [tokens, 1, head_dim / 2]
        meta = self.attention.prepare(view, self.cache.block_size)
        for index, layer in enumerate(self.weights.layers):
            if self._lambdas:
                resid, again = self._lambdas[index]
                x = resid * x + again * first
            x = x + self._attend(index, layer, _norm(x), view.ids, cos, sin, meta)
            x = x + linear(F.relu(linear(_norm(x), layer.up)).square(), layer.down)
            if index == self.spec.middle_layer:
                middle = x
        if self.weights.backout_lambda is not None and middle is not None:
            x = x - self.weights.backout_lambda * middle
        return x if asked is None else x[asked]

    @torch.inference_mode()
    def norm(self, x: Tensor) -> Tensor:
        """The final norm. x: [rows, hidden]"""
        return _norm(x)

    @torch.inference_mode()
    def head(self, x: Tensor) -> Tensor:
        """Logits, float32 [rows, vocab], of hidden states before the final norm."""
        logits = linear(_norm(x), self.weights.head).float()
        return SOFTCAP * torch.tanh(logits / SOFTCAP)

    def _embed(self, view: BatchView) -> Tensor:
        weights = self.weights
        x = _norm(F.embedding(view.ids, weights.embed))  # [tokens, hidden]
        if weights.smear_gate is None or weights.smear_lambda is None:
            return x
        if view.prev_ids is None:
            raise RuntimeError("this model reads the ids of previous tokens, and the batch has none")
        share = weights.smear_lambda * torch.sigmoid(F.linear(x[:, :SMEAR_CHANNELS], weights.smear_gate))  # [tokens, 1]
        share = share * (view.positions > 0)[:, None]  # the first token has none before it
        return x + share * _norm(F.embedding(view.prev_ids, weights.embed))

    def _attend(
        self, index: int, layer: NanochatLayer, x: Tensor, ids: Tensor, cos: Tensor, sin: Tensor, meta: Any
    ) -> Tensor:
        spec = self.spec
        rows = x.shape[0]
        qkv = linear(x, layer.qkv).view(rows, -1, spec.head_dim)
        qk, v = torch.split(qkv, [spec.num_heads + spec.num_kv_heads, spec.num_kv_heads], dim=1)
        if layer.value_embed is not None and layer.value_gate is not None:
            gate = F.linear(x[:, : spec.generation.gate_channels], layer.value_gate)  # [tokens, kv_heads]
            gate = spec.generation.gate_scale * torch.sigmoid(gate)
            v = v + gate[..., None] * F.embedding(ids, layer.value_embed).view(v.shape)
        qk = _norm(rope.rotate(qk, cos, sin))
        q, k = torch.split(qk, [spec.num_heads, spec.num_kv_heads], dim=1)
        out = self.attention.run(q, k, v, self.cache.layers[index], meta, self._scale, self._windows[index])
        return linear(out.reshape(rows, spec.q_size), layer.o)


def _norm(x: Tensor) -> Tensor:
    """RMSNorm without weights, with the smallest step of the type as its epsilon."""
    return F.rms_norm(x, (x.shape[-1],))


def _rope_table(spec: NanochatSpec, length: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin. Pairs are turned the other way round than elsewhere: sin has the other sign."""
    rounded = torch.bfloat16 if spec.generation.rope_is_rounded else torch.float32
    cos, sin = rope.table(spec, length, rounded, torch.device("cpu"))
    return cos.to(like.device, like.dtype), -sin.to(like.device, like.dtype)


def _pairs(weights: NanochatWeights) -> list[tuple[float, float]]:
    """Of each layer: what is kept of the stream, and what of the first embedding is added to it."""
    if weights.resid_lambdas is None or weights.x0_lambdas is None:
        return []
    return list(zip(weights.resid_lambdas.tolist(), weights.x0_lambdas.tolist(), strict=True))
