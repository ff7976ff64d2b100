"""The forward pass of forward.cpp as the runner's model."""

from __future__ import annotations

import ctypes
import weakref
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from engine.batch import BatchView
from engine.errors import OutOfMemory
from engine.kvcache import KVCache
from engine.models import rope
from engine.models.spec import ModelSpec
from engine.native import library
from engine.native.weights import NativeWeights, address
from engine.pages import zero_pages

KEPT_LOGITS = 64  # rows


class NativeDecoder:
    """Weights, rotary tables, threads, and the cache that it writes. Holds no state of any sequence.

    The cache has the bytes of every bfloat16 cache, in an order of its own (attention.hpp). Numbers are rounded to 8
    bits where they meet weights, and to bfloat16 where they meet keys and values; all else is float32. A row's result
    is the same, bit by bit, whatever else is in the step.
    """

    def __init__(
        self,
        spec: ModelSpec,
        weights: NativeWeights,
        cache: KVCache,
        max_model_len: int,
        max_tokens: int,
        threads: int,
        variant: str,
        rope_factors: Tensor | None = None,
    ) -> None:
        self.spec = spec
        self._lib = library.library(variant)
        cos, sin = rope.table(spec, max_model_len, torch.float32, torch.device("cpu"), rope_factors)
        self._cos, self._sin = cos.contiguous(), sin.contiguous()
        self._weights, self._cache = weights, cache  # their memory is read below
        self._final_norm = torch.from_numpy(weights.final_norm)
        self._max_tokens = max_tokens
        # Kept: the system would clear new memory of this size in every step.
        room = zero_pages(KEPT_LOGITS * weights.head.outputs * 4)
        self._logits = torch.from_numpy(room).view(torch.float32).view(KEPT_LOGITS, -1)
        sizes = (spec.num_heads, spec.num_kv_heads, spec.head_dim, cache.block_size)
        shape = library.Shape(*sizes, spec.hidden, spec.ffn, spec.num_layers, max_tokens, threads, spec.norm_eps)
        layers = (library.Layer * spec.num_layers)(*(self._layer(index) for index in range(spec.num_layers)))
        embed, head = weights.embed.struct(), weights.head.struct()
        norm, tables = address(weights.final_norm), (self._cos.data_ptr(), self._sin.data_ptr())
        made = self._lib.headrace_model(
            ctypes.byref(shape), layers, ctypes.byref(embed), ctypes.byref(head), norm, *tables
        )
        if not made:
            lacking = f"no memory for steps of {max_tokens} tokens, or no threads"
            raise OutOfMemory(f"{lacking}; lower --max-step-tokens or --threads")
        self._model = ctypes.c_void_p(made)
        self._end = weakref.finalize(self, self._lib.headrace_free, self._model)

    def _layer(self, index: int) -> library.Layer:
        layer, cache = self._weights.layers[index], self._cache.layers[index]
        return library.Layer(
            *(address(each) for each in (layer.attn_norm, layer.ffn_norm, layer.q_norm, layer.k_norm)),
            *(each.struct() for each in (layer.qkv, layer.o, layer.gate_up, layer.down)),
            cache.keys.data_ptr(),
            cache.values.data_ptr(),
            self.spec.window(index) or 0,
            index not in self.spec.nope_layers,
        )

    def forward(self, view: BatchView, asked: Tensor | None = None) -> Tensor:
        """Hidden states float32 before the final norm: [tokens, hidden], or [asked, hidden] of the rows `asked`, int64,
        ascending, each once. Writes keys and values of every row."""
        num_tokens = len(view.ids)
        if num_tokens > self._max_tokens:  # it would write where nothing is
            raise ValueError(f"{num_tokens} tokens in a step that has room for {self._max_tokens}")
        num_asked = num_tokens if asked is None else len(asked)
        residual = torch.empty(num_tokens, self.spec.hidden)
        tables = np.ascontiguousarray(view.block_tables)
        step = library.Step(
            view.ids.data_ptr(),
            view.positions.data_ptr(),
            view.slots.data_ptr(),
            _data(view.q_starts),
            _data(view.kv_lens),
            tables.ctypes.data,
            None if asked is None else asked.data_ptr(),
            num_tokens,
            view.num_seqs,
            tables.shape[1],
            num_asked,
        )
        self._lib.headrace_forward(self._model, ctypes.byref(step), residual.data_ptr())
        return residual[:num_asked]

    def norm(self, x: Tensor) -> Tensor:
        """The final norm. x: [rows, hidden]"""
        return F.rms_norm(x, (self.spec.hidden,), self._final_norm, self.spec.norm_eps)

    def head(self, x: Tensor) -> Tensor:
        """Logits, float32 [rows, vocab], of hidden states before the final norm. Valid until the next call."""
        rows = x.contiguous()
        logits = self._logits[: len(rows)]
        if len(rows) > len(self._logits):
            logits = torch.empty(len(rows), self._weights.head.outputs)
        for first in range(0, len(rows), self._max_tokens):
            some = rows[first : first + self._max_tokens]
            self._lib.headrace_head(self._model, some.data_ptr(), len(some), logits[first:].data_ptr())
        return logits if logits.shape[1] == self.spec.vocab_size else logits[:, : self.spec.vocab_size].contiguous()


def _data(array: NDArray[Any]) -> int:
    assert array.flags.c_contiguous
    return array.ctypes.data
