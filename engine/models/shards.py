"""Which part of a model a rank of a tensor-parallel group holds.

    qkv, gate and up    rows: whole heads, a stretch of the ffn         each rank computes what follows from its own
    o, down             columns: what belongs to those                  the results of all ranks are summed
    embedding, head     rows: a stretch of the ids                      summed, and laid side by side
    norms               all

A kv head that several ranks have query heads of is on each of them. Biases of o and down are added by the first rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from engine.errors import ModelRefused
from engine.models import weights
from engine.models.spec import ModelSpec

Range = tuple[int, int]  # start, end


@dataclass(frozen=True, slots=True)
class Part:
    """Of a stored tensor: ranges of its rows (dim 0) or columns (dim 1), one after the other."""

    shape: tuple[int, ...]  # of the whole
    dim: int
    ranges: tuple[Range, ...]

    def of(self, whole: Tensor) -> Tensor:
        pieces = [whole.narrow(self.dim, start, end - start) for start, end in self.ranges]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, self.dim)


Parts = Mapping[str, Part]  # by Hugging Face name; those without one are there as a whole
WHOLE: Parts = MappingProxyType({})


def share(spec: Any, rank: int, num_ranks: int) -> ModelSpec:
    """The spec of a rank's own part; the vocabulary's size stays the model's. Raises ModelRefused."""
    if type(spec) is not ModelSpec:  # nanochat's is one, with more tensors
        raise ModelRefused(f"--tp {num_ranks} does not divide {spec.architecture}, only models of the Llama family")
    if spec.num_heads % num_ranks or spec.ffn % num_ranks:
        raise ModelRefused(
            f"--tp {num_ranks} does not divide {spec.num_heads} attention heads and {spec.ffn} columns of MLPs evenly"
        )
    if spec.num_kv_heads % num_ranks and num_ranks % spec.num_kv_heads:
        raise ModelRefused(f"--tp {num_ranks} does not divide {spec.num_kv_heads} heads of keys and values evenly")
    if spec.vocab_size <= (num_ranks - 1) * -(-spec.vocab_size // num_ranks):
        raise ModelRefused(f"--tp {num_ranks} does not divide a vocabulary of {spec.vocab_size}")
    return replace(
        spec,
        num_heads=spec.num_heads // num_ranks,
        num_kv_heads=max(spec.num_kv_heads // num_ranks, 1),
        ffn=spec.ffn // num_ranks,
        rank=rank,
        num_ranks=num_ranks,
    )


def parts(whole: ModelSpec, own: ModelSpec) -> Parts:
    """Of every tensor of a checkpoint that a rank does not hold as a whole."""
    everything = weights.destinations(whole, weights.allocate(whole, torch.float32, torch.device("meta")))
    found = {name: _part(name, tuple(view.shape), whole, own) for name, view in everything.items()}
    return {name: part for name, part in found.items() if part is not None}


def _part(name: str, shape: tuple[int, ...], whole: ModelSpec, own: ModelSpec) -> Part | None:
    q = _shift(own.rank * own.q_size, own.q_size)
    first_kv = own.rank * whole.num_kv_heads // own.num_ranks * own.head_dim
    kv = _shift(first_kv, own.kv_size)
    ffn = _shift(own.rank * own.ffn, own.ffn)
    k_at, v_at = whole.q_size, whole.q_size + whole.kv_size
    ids = (own.first_id, min(own.first_id + own.held_ids, whole.vocab_size))
    rows: dict[str, tuple[Range, ...]] = {
        "q_proj": (q,),
        "k_proj": (kv,),
        "v_proj": (kv,),
        "qkv_proj": (q, _shift(k_at + kv[0], own.kv_size), _shift(v_at + kv[0], own.kv_size)),
        "gate_proj": (ffn,),
        "up_proj": (ffn,),
        "gate_up_proj": (ffn, _shift(whole.ffn + ffn[0], own.ffn)),
        "embed_tokens": (ids,),
        "lm_head": (ids,),
    }
    columns: dict[str, tuple[Range, ...]] = {"o_proj": (q,), "down_proj": (ffn,)}
    *_, module, kind = name.split(".")
    if module in rows:
        return Part(shape, 0, rows[module])
    if module in columns and kind == "weight":
        return Part(shape, 1, columns[module])
    return None


def _shift(start: int, count: int) -> Range:
    return start, start + count
