"""The next token of each sampled position, drawn as engine/noise.py specifies, bit for bit.

    logits [S, vocab]:  | chunk 0 | chunk 1 | ...                 first kernel, program (chunk, s)
    scratch [S, chunks]:  best of each chunk, one int64:  | score, as an integer that sorts alike | id, bits flipped |
    tokens_out [S]:       the largest of those                    second kernel, program s

A larger score wins, then the lower id, so that one maximum of integers decides. Greedy rows score by the logit alone.
On an H100, 256 rows of 151,936: greedy 47 us, 55 % of its copy bandwidth; with noise 143 us.
What a row's filters leave out (engine/cuda/filters.py) counts as -inf.

Two logarithms in float64 for each id would cost more than reading the logits. But a draw is a race: the highest of
logit / temperature - log(-log(u)) is the lowest of -log(u) * exp(-logit / temperature). With v = 1 - u, known exactly,

    -log(u) = -log(1 - v) > v,    so each id's time is at least v * exp(-logit / temperature)

which costs one fast exponential. The id with the lowest such bound is scored exactly; only where another id's bound
lies below that score's time are all ids scored so: rare, as the bound is tight where v is small, and winners' v is.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine import noise
from engine.cuda.filters import Bounds

SMALL_CHUNK, LARGE_CHUNK = 1024, 4096
PIECE = tl.constexpr(512)  # of a chunk that is scored exactly
FEW_SAMPLES = 8  # for which small chunks fill the device better
GOLDEN, MIX_1, MIX_2 = tl.constexpr(noise.GOLDEN), tl.constexpr(noise.MIX_1), tl.constexpr(noise.MIX_2)
LAST_ID = tl.constexpr(0x7FFFFFFF)
LOG2_E = tl.constexpr(1.4426950408889634)
COLDEST = tl.constexpr(1e-30)  # below this temperature everything is scored exactly


@triton.jit
def _row_key(seed, position):
    """(low, high) 32 bits, as noise.row_key."""
    z = seed.to(tl.uint64, bitcast=True) + position.to(tl.uint64) * GOLDEN
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    z = z ^ (z >> 31)
    return z.to(tl.uint32), (z >> 32).to(tl.uint32)


@triton.jit
def _mix(x):
    x = (x ^ (x >> 16)) * MIX_1
    x = (x ^ (x >> 15)) * MIX_2
    return x ^ (x >> 16)


@triton.jit
def _hash(ids, low, high):
    return _mix(_mix(ids.to(tl.uint32) ^ low) + high)


@triton.jit
def _gumbel(h):
    """As noise.gumbel."""
    u = (h.to(tl.float64) + 0.5) * 2.3283064365386963e-10  # 2 ** -32
    return (-tl.log(-tl.log(u))).to(tl.float32)


@triton.jit
def _best(score, ids):
    """The highest score and the lowest id that has it."""
    best = tl.max(score, axis=0)
    return best, tl.min(tl.where(score == best, ids, LAST_ID), axis=0)


@triton.jit
def _load(logits, ids, vocab: tl.constexpr):
    logit = tl.load(logits + ids, mask=ids < vocab, other=float("-inf")).to(tl.float32)
    return tl.where(logit == logit, logit, float("-inf"))


@triton.jit
def _load_kept(logits, ids, lowest, last, vocab: tl.constexpr):
    logit = _load(logits, ids, vocab)
    return tl.where((logit > lowest) | ((logit == lowest) & (ids <= last)), logit, float("-inf"))


@triton.jit
def _first_in_race(logits, logit, ids, low, high, temperature, vocab: tl.constexpr):
    """Score and id that are the best if the third result is true, as it is most of the time."""
    highest = tl.max(logit, axis=0)
    base = tl.where(tl.abs(highest) < float("inf"), highest, 0.0)
    doublings = tl.minimum((base - logit) * (LOG2_E / tl.maximum(temperature, COLDEST)), 120.0)
    v = (_hash(ids, low, high) ^ 0xFFFFFFFF).to(tl.float32) * 2.0**-32 + 2.0**-33
    bound = v * tl.exp2(doublings)  # times exp(-base / temperature)
    winner = tl.min(tl.where(bound == tl.min(bound, axis=0), ids, LAST_ID), axis=0)
    score = tl.div_rn(_load(logits, winner, vocab), temperature) + _gumbel(_hash(winner, low, high))
    zero = tl.div_rn(base, temperature)
    error = 1e-4 + 1e-6 * tl.abs(zero)  # of float32, and more
    time = tl.exp2(tl.minimum((zero - score + error) * LOG2_E, 120.0))
    rivals = tl.sum((bound <= time).to(tl.int32), axis=0)
    return score, winner, (rivals <= 1) & (tl.abs(score) < float("inf")) & (temperature >= COLDEST)


@triton.jit
def _best_exactly(logits, first, lowest, last, low, high, temperature, vocab: tl.constexpr, CHUNK: tl.constexpr):
    """In pieces, so that the rare way costs the common one no registers."""
    best, winner = float("-inf"), first
    for start in range(0, CHUNK, PIECE):
        ids = first + start + tl.arange(0, PIECE)
        logit = _load_kept(logits, ids, lowest, last, vocab)
        score = tl.div_rn(logit, temperature) + _gumbel(_hash(ids, low, high))
        score, token = _best(score, ids)
        winner = tl.where(score > best, token, winner)
        best = tl.maximum(score, best)
    return best, winner


@triton.jit
def _packed(score, token):
    bits = tl.where(score == 0.0, 0.0, score).to(tl.int32, bitcast=True)  # one zero: the two are equal scores
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (ordered.to(tl.int64) << 32) | (token ^ LAST_ID).to(tl.int64)


@triton.jit
def _best_of_chunks(
    logits,
    samples,
    rows,
    positions,
    temperatures,
    seeds,
    counts,
    lowest,
    last,
    scratch,
    vocab: tl.constexpr,
    CHUNK: tl.constexpr,
):
    chunk = tl.program_id(0)
    s = tl.program_id(1)
    if s >= tl.load(counts + 3):
        return
    token = tl.load(samples + s)
    row = tl.load(rows + token)
    temperature = tl.load(temperatures + row)
    ids = chunk * CHUNK + tl.arange(0, CHUNK)
    logits += s.to(tl.int64) * vocab
    lowest, last = tl.load(lowest + s), tl.load(last + s)
    logit = _load_kept(logits, ids, lowest, last, vocab)
    score, winner = _best(logit, ids)
    if (temperature > 0.0) & (score > float("-inf")):
        low, high = _row_key(tl.load(seeds + row), tl.load(positions + token) + 1)
        score, winner, is_sure = _first_in_race(logits, logit, ids, low, high, temperature, vocab)
        if not is_sure:
            score, winner = _best_exactly(logits, chunk * CHUNK, lowest, last, low, high, temperature, vocab, CHUNK)
    tl.store(scratch + s * tl.num_programs(0) + chunk, _packed(score, winner))


@triton.jit
def _best_of_all(scratch, samples, rows, counts, tokens_out, last_tokens, chunks: tl.constexpr, CHUNKS: tl.constexpr):
    s = tl.program_id(0)
    if s >= tl.load(counts + 3):
        return
    chunk = tl.arange(0, CHUNKS)
    lowest = -0x8000000000000000
    best = tl.max(tl.load(scratch + s * chunks + chunk, mask=chunk < chunks, other=lowest), axis=0)
    token = (best & LAST_ID) ^ LAST_ID
    tl.store(tokens_out + s, token)
    tl.store(last_tokens + tl.load(rows + tl.load(samples + s)), token)


def scratch(max_samples: int, vocab: int, device: torch.device) -> Tensor:
    """What sample_plain needs beside its arguments; never read before it is written."""
    return torch.empty(max_samples, triton.cdiv(vocab, SMALL_CHUNK), dtype=torch.int64, device=device)


def sample_plain(
    logits: Tensor,
    samples: Tensor,
    rows: Tensor,
    positions: Tensor,
    temperatures: Tensor,
    seeds: Tensor,
    counts: Tensor,
    bounds: Bounds,
    scratch: Tensor,
    tokens_out: Tensor,
    last_tokens: Tensor,
) -> None:
    """Greedy where a row's temperature is 0, else a draw within the bounds; to tokens_out[s], last_tokens[row].
    Skips padding.

    logits: [samples, vocab]; samples, rows, positions, counts: int32 as in engine/cuda/step.py; temperatures: [rows]
    float32; seeds: [rows] int64, the bits of a uint64; tokens_out: [samples] int64; last_tokens: [rows] int64.
    A NaN counts as -inf; where every logit does, id 0 is drawn.
    """
    num_samples, vocab = logits.shape
    size = SMALL_CHUNK if num_samples <= FEW_SAMPLES else LARGE_CHUNK
    chunks = triton.cdiv(vocab, size)
    _best_of_chunks[(chunks, num_samples)](
        logits,
        samples,
        rows,
        positions,
        temperatures,
        seeds,
        counts,
        bounds.lowest,
        bounds.last,
        scratch,
        vocab,
        size,
        num_warps=4,
    )
    _best_of_all[(num_samples,)](
        scratch,
        samples,
        rows,
        counts,
        tokens_out,
        last_tokens,
        chunks,
        triton.next_power_of_2(chunks),
        num_warps=1 if chunks <= 256 else 4,
    )
