"""The forward pass of engine/models/decoder.py in fused kernels, over one step's tensors.

    x = norm(residual)                       one kernel
    qkv = x @ W                              cuBLAS
    norm q and k, rotate, write k and v      one kernel; part of the next where all tokens decode
    attend: decode tiles, prefill tiles      one kernel each
    residual += attended @ W                 cuBLAS
    x = norm(residual)                       one kernel
    gate, up = x @ W                         cuBLAS
    silu(gate) * up                          one kernel
    residual += that @ W                     cuBLAS

A single token has the norm before a product, silu(gate) * up and the sum with the residual in the product's own launch
(engine/cuda/gemv.py): five kernels a layer instead of eight. On Hopper, up to some hundred have silu(gate) * up in it
(engine/cuda/gemm.py): seven.

A rank of a tensor-parallel group does all of this with its own heads and columns; the sums with the residual, the norm
behind them and the sum over all ranks are one kernel (engine/cuda/sums.py).

Nothing here waits for the device or looks at its values, so every step of one size can be captured in a graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.cuda.activation import silu_mul
from engine.cuda.attention import Rope, Workspace, decode_attention
from engine.cuda.embed import embed
from engine.cuda.flash import FlashAttention
from engine.cuda.gemm import WHOLE, room, serves, tiled_linear
from engine.cuda.gemv import linear_alone
from engine.cuda.norm import rms_norm
from engine.cuda.prefill import prefill_attention
from engine.cuda.rope import rope_write
from engine.cuda.step import StepTensors, max_tokens
from engine.cuda.sums import Sums
from engine.cuda.tables import DeviceTables
from engine.kvcache import KVCache
from engine.models import rope
from engine.models.spec import ModelSpec
from engine.models.weights import LayerWeights, Weights
from scheduler.types import Limits


class CudaDecoder:
    """Weights, rotary tables and the cache that it writes."""

    def __init__(
        self,
        spec: ModelSpec,
        weights: Weights,
        cache: KVCache,
        tables: DeviceTables,
        workspace: Workspace,
        limits: Limits,
        rope_factors: Tensor | None = None,
        flash: FlashAttention | None = None,
        sums: Sums | None = None,
    ) -> None:
        self.spec = spec
        self.weights = weights
        self.cache = cache
        self.flash = flash
        self._sums = sums
        self._tables = tables
        self._workspace = workspace
        device = weights.embed.device
        # In float32 for all types: the kernel rotates in float32 anyway.
        self._cos, self._sin = rope.table(spec, limits.max_model_len, torch.float32, device, rope_factors)
        # Padding tokens, which nobody attends for, find there what is at least finite.
        whole = -(-max_tokens(limits) // WHOLE) * WHOLE
        self._attended = torch.zeros(whole, spec.q_size, dtype=weights.embed.dtype, device=device)
        # Kernels that start before the one in front has ended: from Hopper on.
        self._overlap = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)

    @torch.inference_mode()
    def forward(self, step: StepTensors, residual: Tensor, asked: Tensor | None = None) -> Tensor:
        """residual, [tokens, hidden]: filled with the hidden states before the final norm. Returns those after it.

        asked, [rows]: indices of the tokens that somebody wants to know of. Only theirs are computed then, and they are
        the first rows.
        """
        if len(residual) == 1 and self._sums is None:
            return self._forward_alone(step, residual)
        weights = self.weights
        rows, x = residual, room(len(residual), residual.shape[1], like=residual)
        self._embed(step, residual, weights.layers[0].attn_norm, x)
        next_norms = [*(layer.attn_norm for layer in weights.layers[1:]), weights.final_norm]
        for index, (layer, next_norm) in enumerate(zip(weights.layers, next_norms, strict=True)):
            attended = self._attend(index, layer, self._project(layer, x), step)
            if asked is not None and layer is weights.layers[-1]:
                # Behind the last layer's keys and values no token depends on another.
                attended, rows, x = _selected(attended, asked), residual.index_select(0, asked), x[: len(asked)]
            self._add(rows, attended, layer.o, layer.o_bias, layer.ffn_norm, x)
            self._add(rows, self._gated(layer, x), layer.down, layer.down_bias, next_norm, x)
        if rows is not residual:
            residual[: len(rows)] = rows
        return x

    def _embed(self, step: StepTensors, residual: Tensor, norm: Tensor, x: Tensor) -> None:
        """residual, and x = its norm."""
        table, eps = self.weights.embed, self.spec.norm_eps
        held = residual if self._sums is None else torch.empty_like(residual)
        embed(step.ids, step.rows, self._tables.last_tokens, table, held, self.spec.first_id)
        if self._sums is None:
            rms_norm(residual, norm, eps, x, self._overlap)
        else:
            self._sums.add(held, residual, norm, eps, x, add=False, overlap=self._overlap)

    def _add(self, rows: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, norm: Tensor, out: Tensor) -> None:
        """rows += x @ weight.T + bias, of all ranks; out = the norm of that."""
        if self._sums is None:
            _add_linear(rows, x, weight, bias)
            rms_norm(rows, norm, self.spec.norm_eps, out, self._overlap)
        else:
            partial = self._product(x, weight, bias)
            self._sums.add(partial, rows, norm, self.spec.norm_eps, out, add=True, overlap=self._overlap)

    def _product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x @ weight.T + bias. x: from `room`, or with as much behind it"""
        out = x.new_empty(len(x), len(weight))
        if len(x) == 1:
            linear_alone(x, weight, bias, out, overlap=self._overlap)
        elif serves(len(x), weight, gated=False):
            tiled_linear(x, weight, bias, out, overlap=self._overlap)
        else:
            with _blas_for(weight, len(x)):
                return F.linear(x, weight, bias)
        return out

    def _project(self, layer: LayerWeights, x: Tensor) -> Tensor:
        """[tokens, q + 2 kv]"""
        return self._product(x, layer.qkv, layer.qkv_bias)

    def _gated(self, layer: LayerWeights, x: Tensor) -> Tensor:
        """[tokens, ffn]"""
        gated = room(len(x), self.spec.ffn, like=x)
        if len(x) == 1:
            linear_alone(x, layer.gate_up, layer.gate_up_bias, gated, gated=True, overlap=self._overlap)
        elif serves(len(x), layer.gate_up, gated=True):
            tiled_linear(x, layer.gate_up, layer.gate_up_bias, gated, gated=True, overlap=self._overlap)
        else:
            silu_mul(F.linear(x, layer.gate_up, layer.gate_up_bias), gated, self._overlap)
        return gated

    def _forward_alone(self, step: StepTensors, residual: Tensor) -> Tensor:
        spec, eps, overlap = self.spec, self.spec.norm_eps, self._overlap
        embed(step.ids, step.rows, self._tables.last_tokens, self.weights.embed, residual)
        qkv = residual.new_empty(1, spec.q_size + 2 * spec.kv_size)
        gated = residual.new_empty(1, spec.ffn)
        for index, layer in enumerate(self.weights.layers):
            linear_alone(residual, layer.qkv, layer.qkv_bias, qkv, norm=(layer.attn_norm, eps), overlap=overlap)
            attended = self._attend(index, layer, qkv, step)
            linear_alone(attended, layer.o, layer.o_bias, residual, add=True, overlap=overlap)
            norm = (layer.ffn_norm, eps)
            linear_alone(residual, layer.gate_up, layer.gate_up_bias, gated, norm=norm, gated=True, overlap=overlap)
            linear_alone(gated, layer.down, layer.down_bias, residual, add=True, overlap=overlap)
        return self.norm(residual)

    @torch.inference_mode()
    def norm(self, x: Tensor) -> Tensor:
        """The final norm. x: [rows, hidden]"""
        out = room(len(x), x.shape[1], like=x)
        rms_norm(x, self.weights.final_norm, self.spec.norm_eps, out, self._overlap)
        return out

    @torch.inference_mode()
    def head(self, x: Tensor) -> Tensor:
        """Logits, float32 [rows, vocab], of hidden states before the final norm."""
        logits = F.linear(self.norm(x), self.weights.head)
        if self._sums is not None:
            columns, logits = logits, logits.new_empty(len(x), self.spec.vocab_size)
            self._sums.join(columns, logits)
        return logits.float()

    @torch.inference_mode()
    def logits(self, normed: Tensor, out: Tensor) -> None:
        """Of hidden states after the final norm, as `forward` or `norm` gave them, in the weights' type. out: [rows,
        vocab]"""
        if self._sums is not None:
            self._sums.join(self._product(normed, self.weights.head, None), out)
        elif len(normed) == 1:
            linear_alone(normed, self.weights.head, None, out, overlap=self._overlap)
        elif serves(len(normed), self.weights.head, gated=False):
            tiled_linear(normed, self.weights.head, None, out, overlap=self._overlap)
        else:
            torch.mm(normed, self.weights.head.t(), out=out)

    def _attend(self, index: int, layer: LayerWeights, qkv: Tensor, step: StepTensors) -> Tensor:
        """Writes keys and values. qkv: [tokens, q + 2 kv], changed; returns [tokens, q]."""
        spec, cache, tables, overlap = self.spec, self.cache.layers[index], self._tables.block_tables, self._overlap
        places = (step.rows, step.positions, tables)
        rotates = index not in spec.nope_layers
        q = qkv[:, : spec.q_size].view(-1, spec.num_heads, spec.head_dim)
        out = self._attended[: len(q)].view(q.shape)
        scale, window = spec.head_dim**-0.5, spec.window(index)
        rope = Rope(self._cos, self._sin, layer.q_norm, layer.k_norm, spec.norm_eps, rotates)
        if len(step.prefill):  # keys of a run are read by programs that did not write them
            rope_write(
                qkv, *places, cache, self._cos, self._sin, layer.q_norm, layer.k_norm, spec.norm_eps, rotates, overlap
            )
            if self.flash is not None and step.run_tokens is not None:
                span = step.run_tokens
                out[span] = self.flash(q[span], cache, tables, step.runs, scale, window)
            else:
                prefill_attention(q, cache, *places, step.prefill, step.counts, out, scale, window, overlap=overlap)
        decoded = (q, cache, tables, step.decode, step.counts, out, self._workspace, scale, window)
        decode_attention(*decoded, rope=None if len(step.prefill) else rope, overlap=overlap)
        return out.view(-1, spec.q_size)


def _selected(x: Tensor, rows: Tensor) -> Tensor:
    chosen = room(len(rows), x.shape[1], like=x)
    return torch.index_select(x, 0, rows, out=chosen)


def _add_linear(residual: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """residual += x @ weight.T + bias, in the product's own launch: one reading and one writing of it less."""
    with _blas_for(weight, len(x)):
        residual.addmm_(x, weight.t())
    if bias is not None:
        residual.add_(bias)


@contextmanager
def _blas_for(weight: Tensor, num_rows: int) -> Iterator[None]:
    """cuBLASLt where it is the faster of the two: long sums of large products at a few hundred rows. On an H100, down
    of 8B at 32 / 128 / 224 / 384 rows: 48.2 / 56.6 / 62.9 / 93.7 µs by cuBLAS, 46.2 / 47.7 / 54.3 / 63.6 by cuBLASLt.
    Other products, and other numbers of rows, take the same time or up to 9 % longer."""
    out_features, in_features = weight.shape
    if not (weight.is_cuda and 32 <= num_rows <= 384 and in_features >= 2 * out_features and weight.numel() >= 1 << 25):
        yield
        return
    before = torch.backends.cuda.preferred_blas_library()
    torch.backends.cuda.preferred_blas_library("cublaslt")
    try:
        yield
    finally:
        torch.backends.cuda.preferred_blas_library(before)
