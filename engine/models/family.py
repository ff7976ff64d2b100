"""The kinds of decoders: each with its weights, where a checkpoint's tensors go in them, and its forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from engine.attention.base import AttentionBackend
from engine.errors import ModelRefused
from engine.kvcache import KVCache
from engine.models import gpt2, nanochat, products, spec, weights
from engine.models.decoder import Decoder
from engine.models.gpt2 import Gpt2Decoder, Gpt2Spec
from engine.models.nanochat import NanochatDecoder, NanochatWeights
from engine.models.nanochat_spec import NanochatSpec
from engine.models.spec import ModelSpec, Shape
from engine.parallel.peers import ALONE, Peers

if TYPE_CHECKING:
    from engine.runner import Model


class FamilyWeights(Protocol):
    """What is asked of any family's weights."""

    embed: Tensor

    def tensors(self) -> Iterable[Tensor]:
        """Each stored tensor once."""

    @property
    def num_parameters(self) -> int: ...
    @property
    def num_bytes(self) -> int: ...


class Opened(Protocol):
    """What is asked of a checkpoint to make its decoder."""

    @property
    def spec(self) -> Any: ...

    rope_factors: Tensor | None


class MakeDecoder(Protocol):
    def __call__(
        self,
        opened: Any,
        loaded: Any,
        cache: KVCache,
        attention: AttentionBackend[Any],
        length: int,
        peers: Peers = ALONE,
        /,
    ) -> Model:
        """length: the longest context served."""


@dataclass(frozen=True, slots=True)
class Family:
    """Functions of the family's own specs and weights."""

    allocate: Callable[[Any, torch.dtype, torch.device], Any]  # uninitialised weights of a spec
    destinations: Callable[[Any, Any], dict[str, Tensor]]  # of a spec and its weights: name in a checkpoint -> place
    arrange: Callable[[Any, Any], None]  # once all tensors are in place
    pack: Callable[[Any], None]  # for oneDNN: engine.models.products
    decoder: MakeDecoder
    has_kernels: bool = False  # engine/cuda and engine/native compute it
    prefix: str = ""  # that names in safetensors may have
    unread: Callable[[str], bool] = lambda name: False  # buffers that some files hold, and nobody needs
    reads_prev_ids: Callable[[Any], bool] = lambda spec: False  # batches then have them


def _llama(
    opened: Opened,
    loaded: weights.Weights,
    cache: KVCache,
    attention: AttentionBackend[Any],
    length: int,
    peers: Peers = ALONE,
) -> Decoder:
    return Decoder(opened.spec, loaded, cache, attention, length, opened.rope_factors, peers)


def _gpt2(
    opened: Opened,
    loaded: gpt2.Gpt2Weights,
    cache: KVCache,
    attention: AttentionBackend[Any],
    length: int,
    peers: Peers = ALONE,
) -> Gpt2Decoder:
    return Gpt2Decoder(opened.spec, loaded, cache, attention)


def _nanochat(
    opened: Opened,
    loaded: NanochatWeights,
    cache: KVCache,
    attention: AttentionBackend[Any],
    length: int,
    peers: Peers = ALONE,
) -> NanochatDecoder:
    return NanochatDecoder(opened.spec, loaded, cache, attention, length)


FAMILIES: Mapping[type, Family] = {
    ModelSpec: Family(
        weights.allocate,
        weights.destinations,
        weights.arrange,
        products.pack,
        _llama,
        has_kernels=True,
        unread=lambda name: name.endswith("rotary_emb.inv_freq"),
    ),
    Gpt2Spec: Family(
        gpt2.allocate,
        gpt2.destinations,
        gpt2.arrange,
        gpt2.pack,
        _gpt2,
        prefix="transformer.",
        unread=lambda name: name.endswith((".attn.bias", ".attn.masked_bias")),
    ),
    NanochatSpec: Family(
        nanochat.allocate,
        nanochat.destinations,
        lambda shape, loaded: None,
        nanochat.pack,
        _nanochat,
        reads_prev_ids=lambda shape: shape.smears,
    ),
}
READERS: Mapping[str, Callable[[Mapping[str, Any]], Shape]] = {
    **dict.fromkeys(spec.FAMILIES, spec.spec_from_config),
    "GPT2LMHeadModel": gpt2.spec_from_config,
}


def family_of(shape: Shape) -> Family:
    return FAMILIES[type(shape)]


def num_parameters(shape: Shape) -> int:
    empty: FamilyWeights = family_of(shape).allocate(shape, torch.float32, torch.device("meta"))
    return empty.num_parameters


def read_config(config: Mapping[str, Any]) -> Shape:
    """The spec of a Hugging Face config.json. Raises ModelRefused for what this engine cannot compute exactly."""
    name = (config.get("architectures") or ["(none named)"])[0]
    if name not in READERS:
        raise ModelRefused(f"architecture {name} is not supported; supported: {', '.join(sorted(READERS))}")
    return READERS[name](config)
