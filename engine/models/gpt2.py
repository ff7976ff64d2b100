"""The forward pass of GPT-2: learned positions, LayerNorms and products with biases, an MLP with gelu, a tied head."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.attention.base import AttentionBackend
from engine.batch import BatchView
from engine.errors import ModelRefused
from engine.kvcache import KVCache
from engine.models.products import linear, packed

Gelu = Literal["tanh", "none"]  # how torch computes it: by tanh, or exactly
GELUS: dict[str, Gelu] = {"gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu": "none"}
MATRICES = ("qkv", "o", "up", "down")  # fields of Gpt2Layer that are multiplied with


@dataclass(frozen=True, slots=True)
class Gpt2Spec:
    architecture: str
    num_layers: int
    hidden: int
    num_heads: int
    ffn: int
    vocab_size: int
    context_length: int  # as many positions have been learned
    norm_eps: float = 1e-5
    gelu: Gelu = "tanh"
    tied: bool = True  # the output head is the embedding
    stored_transposed: bool = False  # the checkpoint's matrices are [in, out]
    scaled: bool = True  # scores are divided by the square root of head_dim
    scaled_by_layer: bool = False  # and by the layer's number, from 1

    @property
    def num_kv_heads(self) -> int:
        return self.num_heads

    @property
    def head_dim(self) -> int:
        return self.hidden // self.num_heads

    @property
    def kv_size(self) -> int:
        return self.hidden

    @property
    def longest_context(self) -> int:
        return self.context_length

    def scale(self, layer: int) -> float:
        """What scores are multiplied by."""
        return (self.head_dim**-0.5 if self.scaled else 1.0) / (layer + 1 if self.scaled_by_layer else 1)


def spec_from_config(config: Mapping[str, Any]) -> Gpt2Spec:
    """Reads a Hugging Face config.json. Raises ModelRefused for what this engine cannot compute exactly."""
    activation = config.get("activation_function", "gelu_new")
    if activation not in GELUS:
        raise ModelRefused(f"activation {activation!r} is not supported in GPT-2; supported: {', '.join(GELUS)}")
    if config.get("add_cross_attention"):
        raise ModelRefused("cross attention is not supported in GPT-2")
    try:
        spec = Gpt2Spec(
            architecture="GPT2LMHeadModel",
            num_layers=config["n_layer"],
            hidden=config["n_embd"],
            num_heads=config["n_head"],
            ffn=config.get("n_inner") or 4 * config["n_embd"],
            vocab_size=config["vocab_size"],
            context_length=config["n_positions"],
            norm_eps=config.get("layer_norm_epsilon", 1e-5),
            gelu=GELUS[activation],
            tied=bool(config.get("tie_word_embeddings", True)),
            stored_transposed=True,
            scaled=bool(config.get("scale_attn_weights", True)),
            scaled_by_layer=bool(config.get("scale_attn_by_inverse_layer_idx", False)),
        )
    except KeyError as missing:
        raise ModelRefused(f"config.json has no {missing}") from None
    return checked(spec)


def checked(spec: Gpt2Spec) -> Gpt2Spec:
    if spec.num_heads < 1 or spec.hidden % spec.num_heads:
        raise ModelRefused(f"{spec.hidden} hidden dimensions cannot be divided among {spec.num_heads} heads")
    return spec


@dataclass(slots=True)
class Gpt2Layer:
    attn_norm: Tensor  # [hidden]
    attn_norm_bias: Tensor
    qkv: Tensor  # [3 * hidden, hidden]
    qkv_bias: Tensor
    o: Tensor  # [hidden, hidden]
    o_bias: Tensor
    ffn_norm: Tensor
    ffn_norm_bias: Tensor
    up: Tensor  # [ffn, hidden]
    up_bias: Tensor
    down: Tensor  # [hidden, ffn]
    down_bias: Tensor


NAMES = {  # of each field in a Hugging Face checkpoint
    "attn_norm": "ln_1.weight",
    "attn_norm_bias": "ln_1.bias",
    "qkv": "attn.c_attn.weight",
    "qkv_bias": "attn.c_attn.bias",
    "o": "attn.c_proj.weight",
    "o_bias": "attn.c_proj.bias",
    "ffn_norm": "ln_2.weight",
    "ffn_norm_bias": "ln_2.bias",
    "up": "mlp.c_fc.weight",
    "up_bias": "mlp.c_fc.bias",
    "down": "mlp.c_proj.weight",
    "down_bias": "mlp.c_proj.bias",
}


@dataclass(slots=True)
class Gpt2Weights:
    embed: Tensor  # [vocab, hidden]
    positions: Tensor  # [context_length, hidden]
    layers: list[Gpt2Layer]
    final_norm: Tensor
    final_norm_bias: Tensor
    head: Tensor  # [vocab, hidden]; the embedding itself where tied

    def tensors(self) -> Iterable[Tensor]:
        """Each stored tensor once."""
        yield from (self.embed, self.positions, self.final_norm, self.final_norm_bias)
        if self.head is not self.embed:
            yield self.head
        for layer in self.layers:
            yield from (getattr(layer, field.name) for field in fields(layer))

    @property
    def num_parameters(self) -> int:
        return sum(tensor.numel() for tensor in self.tensors())

    @property
    def num_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors())


def allocate(spec: Gpt2Spec, dtype: torch.dtype, device: torch.device) -> Gpt2Weights:
    """Uninitialised weights of the spec's shapes."""
    hidden = spec.hidden

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    def layer() -> Gpt2Layer:
        return Gpt2Layer(
            *(empty(hidden), empty(hidden)),
            *(empty(3 * hidden, hidden), empty(3 * hidden)),
            *(empty(hidden, hidden), empty(hidden)),
            *(empty(hidden), empty(hidden)),
            *(empty(spec.ffn, hidden), empty(spec.ffn)),
            *(empty(hidden, spec.ffn), empty(hidden)),
        )

    embed, positions = empty(spec.vocab_size, hidden), empty(spec.context_length, hidden)
    head = embed if spec.tied else empty(spec.vocab_size, hidden)
    layers = [layer() for _ in range(spec.num_layers)]
    return Gpt2Weights(embed, positions, layers, empty(hidden), empty(hidden), head)


def destinations(spec: Gpt2Spec, weights: Gpt2Weights) -> dict[str, Tensor]:
    """Where each tensor of a Hugging Face checkpoint goes, by its name without "transformer.". What is stored
    transposed is read as it is, until `arrange`."""
    table = {
        "wte.weight": weights.embed,
        "wpe.weight": weights.positions,
        "ln_f.weight": weights.final_norm,
        "ln_f.bias": weights.final_norm_bias,
    }
    if not spec.tied:
        table["lm_head.weight"] = weights.head
    for index, layer in enumerate(weights.layers):
        for field, name in NAMES.items():
            tensor: Tensor = getattr(layer, field)
            stored = tensor.view(tensor.shape[::-1]) if field in MATRICES and spec.stored_transposed else tensor
            table[f"h.{index}.{name}"] = stored
    return table


def arrange(spec: Gpt2Spec, weights: Gpt2Weights) -> None:
    """To be called once all tensors are in place: turns what is stored transposed, one matrix at a time."""
    if not spec.stored_transposed:
        return
    for tensor in _matrices(weights):
        tensor.copy_(tensor.view(tensor.shape[::-1]).t().clone(memory_format=torch.contiguous_format))


def _matrices(weights: Gpt2Weights) -> Iterator[Tensor]:
    for layer in weights.layers:
        yield from (getattr(layer, field) for field in MATRICES)


def pack(weights: Gpt2Weights) -> None:
    """As products.pack does for the Llama family."""
    for layer in weights.layers:
        for field in MATRICES:
            setattr(layer, field, packed(getattr(layer, field)))
    weights.head = packed(weights.head)


class Gpt2Decoder:
    """Weights, and the cache that it writes. Holds no state of any sequence."""

    def __init__(self, spec: Gpt2Spec, weights: Gpt2Weights, cache: KVCache, attention: AttentionBackend[Any]) -> None:
        self.spec = spec
        self.weights = weights
        self.cache = cache
        self.attention = attention

    @torch.inference_mode()
    def forward(self, view: BatchView, asked: Tensor | None = None) -> Tensor:
        """Hidden states before the final norm: [tokens, hidden], or [asked, hidden] of the rows `asked`. Writes keys
        and values of every row."""
        x = F.embedding(view.ids, self.weights.embed) + F.embedding(view.positions, self.weights.positions)
        meta = self.attention.prepare(view, self.cache.block_size)
        for index, layer in enumerate(self.weights.layers):
            x = x + self._attend(index, layer, self._norm(x, layer.attn_norm, layer.attn_norm_bias), meta)
            x = x + self._mlp(layer, self._norm(x, layer.ffn_norm, layer.ffn_norm_bias))
        return x if asked is None else x[asked]

    @torch.inference_mode()
    def norm(self, x: Tensor) -> Tensor:
        """The final norm. x: [rows, hidden]"""
        return self._norm(x, self.weights.final_norm, self.weights.final_norm_bias)

    @torch.inference_mode()
    def head(self, x: Tensor) -> Tensor:
        """Logits, float32 [rows, vocab], of hidden states before the final norm."""
        return linear(self.norm(x), self.weights.head).float()

    def _norm(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(x, (x.shape[-1],), weight, bias, self.spec.norm_eps)

    def _attend(self, index: int, layer: Gpt2Layer, x: Tensor, meta: Any) -> Tensor:
        spec, rows = self.spec, x.shape[0]
        qkv = linear(x, layer.qkv, layer.qkv_bias).view(rows, 3, spec.num_heads, spec.head_dim)
        q, k, v = qkv.unbind(1)
        out = self.attention.run(q, k, v, self.cache.layers[index], meta, spec.scale(index), None)
        return linear(out.reshape(rows, spec.hidden), layer.o, layer.o_bias)

    def _mlp(self, layer: Gpt2Layer, x: Tensor) -> Tensor:
        return linear(
            F.gelu(linear(x, layer.up, layer.up_bias), approximate=self.spec.gelu), layer.down, layer.down_bias
        )
