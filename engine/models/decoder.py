"""The forward pass of the Llama family: pre-norm blocks of grouped-query attention and a SiLU-gated MLP."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.attention.base import AttentionBackend
from engine.batch import BatchView
from engine.kvcache import KVCache
from engine.models import rope
from engine.models.products import linear
from engine.models.spec import ModelSpec
from engine.models.weights import LayerWeights, Weights
from engine.parallel.peers import ALONE, Peers


class Decoder:
    """Weights, rotary tables and the cache that it writes. Holds no state of any sequence."""

    def __init__(
        self,
        spec: ModelSpec,
        weights: Weights,
        cache: KVCache,
        attention: AttentionBackend[Any],
        max_model_len: int,
        rope_factors: Tensor | None = None,
        peers: Peers = ALONE,
    ) -> None:
        self.spec = spec
        self.peers = peers
        self.weights = weights
        self.cache = cache
        self.attention = attention
        embed = weights.embed
        self._cos, self._sin = rope.table(spec, max_model_len, embed.dtype, embed.device, rope_factors)

    @torch.inference_mode()
    def forward(self, view: BatchView, asked: Tensor | None = None) -> Tensor:
        """Hidden states before the final norm: [tokens, hidden], or [asked, hidden] of the rows `asked`. Writes keys
        and values of every row."""
        x = self._embed(view.ids)  # [tokens, hidden]
        cos, sin = self._cos[view.positions, None], self._sin[view.positions, None]  # [tokens, 1, head_dim / 2]
        meta = self.attention.prepare(view, self.cache.block_size)
        for index, layer in enumerate(self.weights.layers):
            x = x + self.peers.sum(self._attend(index, layer, self._norm(x, layer.attn_norm), cos, sin, meta))
            x = x + self.peers.sum(self._mlp(layer, self._norm(x, layer.ffn_norm)))
        return x if asked is None else x[asked]

    @torch.inference_mode()
    def norm(self, x: Tensor) -> Tensor:
        """The final norm. x: [rows, hidden]"""
        return self._norm(x, self.weights.final_norm)

    @torch.inference_mode()
    def head(self, x: Tensor) -> Tensor:
        """Logits, float32 [rows, vocab], of hidden states before the final norm."""
        return self.peers.join(linear(self.norm(x), self.weights.head), self.spec.vocab_size).float()

    def _embed(self, ids: Tensor) -> Tensor:
        if self.spec.num_ranks == 1:
            return F.embedding(ids, self.weights.embed)
        own = ids - self.spec.first_id
        elsewhere = (own < 0) | (own >= self.spec.held_ids)
        x = F.embedding(own.masked_fill(elsewhere, 0), self.weights.embed)
        return self.peers.sum(x.masked_fill(elsewhere[:, None], 0))

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), weight, self.spec.norm_eps)

    def _attend(self, index: int, layer: LayerWeights, x: Tensor, cos: Tensor, sin: Tensor, meta: Any) -> Tensor:
        spec = self.spec
        rows = x.shape[0]
        qkv = linear(x, layer.qkv, layer.qkv_bias).view(rows, -1, spec.head_dim)
        qk, v = torch.split(qkv, [spec.num_heads + spec.num_kv_heads, spec.num_kv_heads], dim=1)
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k = torch.split(qk, [spec.num_heads, spec.num_kv_heads], dim=1)
            qk = torch.cat((self._norm(q, layer.q_norm), self._norm(k, layer.k_norm)), dim=1)
        if index not in spec.nope_layers:
            qk = rope.rotate(qk, cos, sin)
        q, k = torch.split(qk, [spec.num_heads, spec.num_kv_heads], dim=1)
        out = self.attention.run(q, k, v, self.cache.layers[index], meta, spec.head_dim**-0.5, spec.window(index))
        return linear(out.reshape(rows, spec.q_size), layer.o, layer.o_bias)

    def _mlp(self, layer: LayerWeights, x: Tensor) -> Tensor:
        gate, up = linear(x, layer.gate_up, layer.gate_up_bias).chunk(2, dim=-1)
        return linear(F.silu(gate) * up, layer.down, layer.down_bias)
