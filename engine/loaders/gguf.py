"""GGUF files: metadata to a spec, quantised blocks to float32 tensors under Hugging Face names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.errors import ModelRefused
from engine.loaders.blocks import GROUP, SIMPLE, Blocks, Codes, codes_of, quantise
from engine.loaders.checkpoint import Report, check_names
from engine.loaders.gguf_file import GgufFile
from engine.models import gpt2
from engine.models.family import family_of
from engine.models.gpt2 import Gpt2Spec
from engine.models.spec import SMOLLM3_NOPE_STEP, ModelSpec, RopeScaling

# Architectures by what they add to the Llama block. Those with `interleaved` store q and k for rotary pairs (2i, 2i+1),
# which the half-split convention of the forward pass needs put back in order.
ARCHITECTURES: dict[str, dict[str, bool]] = {
    "llama": {"interleaved": True},
    "smollm3": {"interleaved": True},
    "qwen2": {"interleaved": False, "qkv_bias": True},
    "qwen3": {"interleaved": False, "qk_norm": True},
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TOP_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
ROPE_FACTORS = "rope_freqs.weight"

GPT2 = "gpt2"
GPT2_LAYER_NAMES = {
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}
GPT2_TOP_NAMES = {"token_embd": "wte", "position_embd": "wpe", "output_norm": "ln_f", "output": "lm_head"}


class GgufCheckpoint:
    def __init__(self, path: Path) -> None:
        self._file = GgufFile(path)
        meta = _Metadata(self._file)
        self._is_gpt2 = meta.architecture == GPT2
        self.spec: Any = _gpt2_spec(meta, self._file) if self._is_gpt2 else _spec(meta, self._file)
        self._interleaved = not self._is_gpt2 and ARCHITECTURES[meta.architecture]["interleaved"]
        self.rope_factors = self._read(ROPE_FACTORS) if ROPE_FACTORS in self._file.tensors else None

    def read_into(self, table: Mapping[str, Tensor], report: Report) -> None:
        tensors = {self._name(name): tensor for name, tensor in self._file.tensors.items()}
        self._check_names(table)
        done, total = 0, sum(tensors[name].num_bytes for name in table)
        for name, tensor in tensors.items():
            if name in table:
                table[name].copy_(self._in_order(tensor.name))
                done += tensor.num_bytes
                report(done, total)

    @property
    def is_quantised(self) -> bool:
        """Every matrix, in blocks."""
        plain = {"F32", "F16", "BF16", "F64"}
        return all(len(each.shape) == 1 or each.kind.name not in plain for each in self._file.tensors.values())

    def check(self) -> None:
        """Raises ModelRefused unless the tensors are those of the architecture."""
        family = family_of(self.spec)
        self._check_names(
            family.destinations(self.spec, family.allocate(self.spec, torch.float32, torch.device("meta")))
        )

    def matrix(self, name: str) -> Codes | Blocks:
        """By its GGUF name: its blocks as they are, their codes, or quantised anew."""
        tensor = self._file.tensors[name]
        rows, inputs = tensor.shape
        places = torch.arange(rows)
        turned = self._half_split(name, places)
        order = None if turned is places else turned.numpy()
        if tensor.kind in SIMPLE and inputs % GROUP == 0:
            return Blocks(self._file.raw(tensor), tensor.kind, (rows, inputs), order)
        found = codes_of(self._file.raw(tensor), tensor.kind, tensor.shape)
        if found is None:
            found = quantise(self._file.values(tensor))
        return found if order is None else found.rows(order)

    def vector(self, name: str) -> NDArray[np.float32]:
        """Of norms and biases."""
        return np.ascontiguousarray(self._in_order(name).numpy())

    def _check_names(self, table: Mapping[str, Tensor]) -> None:
        shapes = {self._name(name): tensor.shape for name, tensor in self._file.tensors.items()}
        check_names(table, shapes, lambda name: name == ROPE_FACTORS)

    def _in_order(self, name: str) -> Tensor:
        """With the rows of q and k as the forward pass needs them."""
        return self._half_split(name, self._read(name))

    def _half_split(self, name: str, values: Tensor) -> Tensor:
        if not self._interleaved:
            return values
        if name.endswith((".attn_q.weight", ".attn_q.bias")):
            return half_split(values, self.spec.num_heads)
        if name.endswith((".attn_k.weight", ".attn_k.bias")):
            return half_split(values, self.spec.num_kv_heads)
        return values

    def _name(self, name: str) -> str:
        return gpt2_name(name) if self._is_gpt2 else hf_name(name)

    def _read(self, name: str) -> Tensor:
        return torch.from_numpy(self._file.values(self._file.tensors[name]))


class _Metadata:
    """The scalars of the file; one that is needed and missing is told by its name."""

    def __init__(self, file: GgufFile) -> None:
        self._scalars = file.scalars
        self.architecture = str(file.scalars.get("general.architecture", "(none)"))

    def own(self, key: str, default: Any = None) -> Any:
        """A key of the architecture, such as llama.block_count. Without a default it must be there."""
        value = self._scalars.get(f"{self.architecture}.{key}", default)
        if value is None:
            raise ModelRefused(f"the GGUF metadata lacks {self.architecture}.{key}")
        return value


def _spec(meta: _Metadata, file: GgufFile) -> ModelSpec:
    tensors = file.tensors
    flags = ARCHITECTURES.get(meta.architecture)
    if flags is None:
        supported = ", ".join(sorted([*ARCHITECTURES, GPT2]))
        raise ModelRefused(f"GGUF architecture {meta.architecture!r} is not supported; supported: {supported}")
    vocab_size = _vocab_size(file)
    heads, layers, hidden = meta.own("attention.head_count"), meta.own("block_count"), meta.own("embedding_length")
    head_dim = meta.own("attention.key_length", hidden // heads)
    if meta.own("rope.dimension_count", head_dim) != head_dim:
        raise ModelRefused("partial rotary embeddings are not supported")
    # The file does not say which layers have no rope.
    nope = range(SMOLLM3_NOPE_STEP - 1, layers, SMOLLM3_NOPE_STEP) if meta.architecture == "smollm3" else ()
    return ModelSpec(
        architecture=f"{meta.architecture} (GGUF)",
        num_layers=layers,
        hidden=hidden,
        num_heads=heads,
        num_kv_heads=meta.own("attention.head_count_kv", heads),
        head_dim=head_dim,
        rotary_dim=head_dim,
        ffn=meta.own("feed_forward_length"),
        vocab_size=vocab_size,
        norm_eps=_as_trained(meta.own("attention.layer_norm_rms_epsilon")),
        rope_theta=float(meta.own("rope.freq_base", 10_000.0)),
        context_length=meta.own("context_length"),
        tied="output.weight" not in tensors,
        qkv_bias=flags.get("qkv_bias", False) or "blk.0.attn_q.bias" in tensors,
        o_bias="blk.0.attn_output.bias" in tensors,
        qk_norm=flags.get("qk_norm", False),
        rope_scaling=_rope_scaling(meta),
        nope_layers=frozenset(nope),
    )


def _gpt2_spec(meta: _Metadata, file: GgufFile) -> Gpt2Spec:
    return gpt2.checked(
        Gpt2Spec(
            architecture=f"{GPT2} (GGUF)",
            num_layers=meta.own("block_count"),
            hidden=meta.own("embedding_length"),
            num_heads=meta.own("attention.head_count"),
            ffn=meta.own("feed_forward_length"),
            vocab_size=_vocab_size(file),
            context_length=meta.own("context_length"),
            norm_eps=_as_trained(meta.own("attention.layer_norm_epsilon")),
            tied="output.weight" not in file.tensors,
        )
    )


def _vocab_size(file: GgufFile) -> int:
    if "token_embd.weight" not in file.tensors:
        raise ModelRefused("the checkpoint lacks 1 tensor: token_embd.weight")
    return file.tensors["token_embd.weight"].shape[0]


def _as_trained(number: float) -> float:
    """Stored as float32: the shortest decimal that is that float32 is what the model was trained with."""
    return float(str(np.float32(number)))


def _rope_scaling(meta: _Metadata) -> RopeScaling | None:
    kind = meta.own("rope.scaling.type", "none")
    if kind == "none":
        return None
    if kind not in ("linear", "yarn"):
        raise ModelRefused(f"rope scaling {kind!r} is not supported in GGUF; supported: linear, yarn")
    return RopeScaling(
        kind=kind,
        factor=float(meta.own("rope.scaling.factor")),
        original_context=int(meta.own("rope.scaling.original_context_length", meta.own("context_length"))),
    )


def hf_name(name: str) -> str:
    """The Hugging Face name of a GGUF tensor; unknown names come back as they are."""
    return _renamed(name, TOP_NAMES, "model.layers", LAYER_NAMES)


def gpt2_name(name: str) -> str:
    return _renamed(name, GPT2_TOP_NAMES, "h", GPT2_LAYER_NAMES)


def _renamed(name: str, top: Mapping[str, str], layers: str, inner: Mapping[str, str]) -> str:
    stem, _, kind = name.rpartition(".")
    if stem in top:
        return f"{top[stem]}.{kind}"
    parts = stem.split(".")
    if len(parts) == 3 and parts[0] == "blk" and parts[2] in inner:
        return f"{layers}.{parts[1]}.{inner[parts[2]]}.{kind}"
    return name


def half_split(values: Tensor, heads: int) -> Tensor:
    """Rows (or bias entries) of each head from pair-interleaved order to first halves, then second halves."""
    rows = values.shape[0]
    by_pair = values.reshape(heads, rows // heads // 2, 2, *values.shape[1:])
    return by_pair.transpose(1, 2).reshape(values.shape)
