"""Randomness as a pure function of (seed, position, token id): no state, so no neighbour, cache hit or preemption can
change a seeded answer.

Specification, for every implementation to match bit for bit. All integers are unsigned, products wrap.
    key  = splitmix64(seed + position * 0x9E3779B97F4A7C15)          64 bits; position: index of the token to be drawn
    h    = mix(mix(token ^ low32(key)) + high32(key))                 32 bits
    mix  = x ^= x >> 16; x *= 0x7FEB352D; x ^= x >> 15; x *= 0x846CA68B; x ^= x >> 16
    u    = (h + 0.5) / 2**32                                          float64, never 0 or 1
    g    = float32(-log(-log(u)))                                     standard Gumbel; computed in float64
The drawn token is argmax over ids of float32(logit / temperature) + g, the lowest id winning a tie: the Gumbel-max
trick, an exact draw from softmax(logit / temperature). splitmix64: Steele, Lea, Flood 2014. mix: "lowbias32" of
C. Wellons' hash prospector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial

import torch
from torch import Tensor

MASK_64 = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
MIX_1, MIX_2 = 0x7FEB352D, 0x846CA68B
MAX_GUMBEL = 22.9  # a little above -log(-log((2**32 - 0.5) / 2**32)), the largest value of g


def row_key(seed: int, position: int) -> tuple[int, int]:
    """(low, high) 32 bits of the key that all tokens of one row share."""
    z = (seed + position * GOLDEN) & MASK_64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK_64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK_64
    z ^= z >> 31
    return z & 0xFFFFFFFF, z >> 32


def row_keys(seeds: Sequence[int], positions: Sequence[int], device: torch.device) -> Tensor:
    """[rows, 2] int64."""
    return torch.tensor([row_key(s, p) for s, p in zip(seeds, positions, strict=True)], device=device).view(-1, 2)


def gumbel(tokens: Tensor, keys: Tensor) -> Tensor:
    """g of each token id. tokens: [rows, n] or [n] int64; keys: [rows, 2] int64. Returns [rows, n] float32."""
    low, high = keys[:, :1], keys[:, 1:]
    h = _mix(_mix(tokens ^ low) + high)
    if h.device.type == "mps":  # which has no float64
        return _of_hash(h.cpu()).to(h.device)
    return _of_hash(h)


def _of_hash(h: Tensor) -> Tensor:
    u = (h.double() + 0.5) * 2.0**-32
    return (-(-u.log()).log()).float()


def _mix(x: Tensor) -> Tensor:
    """On int64 tensors: products may wrap, but their low 32 bits are right."""
    x = x & 0xFFFFFFFF
    x = x ^ (x >> 16)
    x = (x * MIX_1) & 0xFFFFFFFF
    x = x ^ (x >> 15)
    x = (x * MIX_2) & 0xFFFFFFFF
    return x ^ (x >> 16)


def draw(logits: Tensor, temperatures: Tensor, keys: Tensor) -> Tensor:
    """One token a row from the whole vocabulary. logits: [rows, vocab] float32; returns [rows] int64."""
    if logits.device.type == "cpu":
        return _pruned()(logits, temperatures, keys)
    if logits.device.type == "mps":  # the logarithms are the host's: only those that may win
        return _pruned()(logits.cpu(), temperatures.cpu(), keys.cpu()).to(logits.device)
    return draw_all(logits, temperatures, keys)


@cache
def _pruned() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """By the compiled part where there is one: numba takes half a second to import, and longer to compile."""
    from engine.native import library

    if variants := library.runnable():
        from engine.noise_native import draw_pruned

        return partial(draw_pruned, variant=variants[0])
    from engine import noise_numba

    return noise_numba.draw_pruned


def draw_all(logits: Tensor, temperatures: Tensor, keys: Tensor) -> Tensor:
    """The same, hashing every id: the oracle of the pruned kernel, and the path of other devices."""
    ids = torch.arange(logits.shape[1], device=logits.device)
    return (logits / temperatures[:, None] + gumbel(ids, keys)).argmax(dim=1)
