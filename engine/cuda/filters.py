"""top_k, top_p and min_p of a row as one bound on its logits, found without sorting.

    kept:   logit > lowest,   or   logit == lowest and id <= last

A program takes a sampled row. Logits become integers that sort alike; the one at the cut is found by quartering their
range, each time with three cuts and one pass over the row, which lies in L2:

    top_k   largest c that at least k logits reach                               -> count of logits  >= c
    top_p   smallest c above which the mass, of the k if there is one, is < p    -> mass of logits   >= c
    min_p   highest logit + temperature * log(min_p), whichever is higher

bfloat16 has 16 bits, so at most 8 passes for each of the two; float32 16. Among equals the lower ids stay, as in
engine/sampler.py, which sorts, and is the oracle.

On an H100, up to 132 rows of 151,936 ids in bfloat16: top_k 0.19 ms, with top_p 0.28, min_p alone 0.02.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK, NUM_WARPS = 8192, 32
LAST_ID = tl.constexpr(0x7FFFFFFF)
LOG2_E = tl.constexpr(1.4426950408889634)
COLDEST = tl.constexpr(1e-30)
# Bits of a float32 that every value of the type leaves alone.
IDLE_BITS = {torch.bfloat16: 16, torch.float16: 13, torch.float32: 0}


@dataclass(frozen=True, slots=True)
class Filters:
    """As the rows' requests have them."""

    top_k: Tensor  # [rows] int32; 0: off
    top_p: Tensor  # [rows] float32; 1: off
    min_p: Tensor  # [rows] float32; 0: off


@dataclass(frozen=True, slots=True)
class Bounds:
    """What is left to draw from."""

    lowest: Tensor  # [samples] float32
    last: Tensor  # [samples] int32


def bounds(max_samples: int, device: torch.device) -> Bounds:
    """Of rows that keep everything."""
    lowest = torch.full((max_samples,), float("-inf"), device=device)
    return Bounds(lowest, torch.full((max_samples,), LAST_ID.value, dtype=torch.int32, device=device))


@triton.jit
def _load(logits, ids, vocab: tl.constexpr, IDLE: tl.constexpr):
    """Logits, and integers in the same order. One zero: the two are equal. A NaN counts as -inf."""
    logit = tl.load(logits + ids, mask=ids < vocab, other=float("-inf")).to(tl.float32)
    logit = tl.where(logit == logit, logit, float("-inf"))
    bits = tl.where(logit == 0.0, 0.0, logit).to(tl.int32, bitcast=True)
    return logit, tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits) >> IDLE


@triton.jit
def _value(key, IDLE: tl.constexpr):
    """The logit of such an integer."""
    ordered = key.to(tl.int32)
    ordered = tl.where(ordered < 0, (ordered << IDLE) | ((1 << IDLE) - 1), ordered << IDLE)
    return tl.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).to(tl.float32, bitcast=True)


@triton.jit
def _highest(logits, vocab: tl.constexpr, IDLE: tl.constexpr, CHUNK: tl.constexpr):
    """The highest logit and its integer."""
    top, top_key = tl.full([CHUNK], float("-inf"), tl.float32), tl.full([CHUNK], -0x80000000, tl.int32)
    for start in range(0, vocab, CHUNK):
        logit, key = _load(logits, start + tl.arange(0, CHUNK), vocab, IDLE)
        top, top_key = tl.maximum(top, logit), tl.maximum(top_key, key)
    return tl.max(top, axis=0), tl.max(top_key, axis=0)


@triton.jit
def _cuts(low, quarter):
    """Three, in the keys' own type: wider ones cost the passes a third of their speed. None lies above what can be."""
    high = tl.full((), 0x7FFFFFFF, tl.int64)
    a, b, c = low + quarter, low + 2 * quarter, low + 3 * quarter
    return tl.minimum(a, high).to(tl.int32), tl.minimum(b, high).to(tl.int32), tl.minimum(c, high).to(tl.int32)


@triton.jit
def _counts_from(logits, low, quarter, vocab: tl.constexpr, IDLE: tl.constexpr, CHUNK: tl.constexpr):
    """How many logits reach low + quarter, low + 2 quarter, low + 3 quarter."""
    first, second, third = _cuts(low, quarter)
    a, b, c = tl.zeros([CHUNK], tl.int32), tl.zeros([CHUNK], tl.int32), tl.zeros([CHUNK], tl.int32)
    for start in range(0, vocab, CHUNK):
        _, key = _load(logits, start + tl.arange(0, CHUNK), vocab, IDLE)
        a += (key >= first).to(tl.int32)
        b += (key >= second).to(tl.int32)
        c += (key >= third).to(tl.int32)
    return tl.sum(a, axis=0), tl.sum(b, axis=0), tl.sum(c, axis=0)


@triton.jit
def _masses_from(logits, low, quarter, top, rate, vocab: tl.constexpr, IDLE: tl.constexpr, CHUNK: tl.constexpr):
    """Their probabilities, times a number that is the same in every pass."""
    first, second, third = _cuts(low, quarter)
    a, b, c = tl.zeros([CHUNK], tl.float32), tl.zeros([CHUNK], tl.float32), tl.zeros([CHUNK], tl.float32)
    for start in range(0, vocab, CHUNK):
        logit, key = _load(logits, start + tl.arange(0, CHUNK), vocab, IDLE)
        mass = tl.exp2((logit - top) * rate)
        a += tl.where(key >= first, mass, 0.0)
        b += tl.where(key >= second, mass, 0.0)
        c += tl.where(key >= third, mass, 0.0)
    return tl.sum(a, axis=0), tl.sum(b, axis=0), tl.sum(c, axis=0)


@triton.jit
def _narrowed(low, high, above, quarter, wanted, a, b, c):
    """The quarter in which what reaches a cut falls below what is wanted, and what reaches its upper end."""
    if a < wanted:
        high, above = low + quarter, a
    elif b < wanted:
        low, high, above = low + quarter, low + 2 * quarter, b
    elif c < wanted:
        low, high, above = low + 2 * quarter, low + 3 * quarter, c
    else:
        low = low + 3 * quarter
    return low, high, above


@triton.jit
def _last_of_equals(logits, cut, room, vocab: tl.constexpr, IDLE: tl.constexpr, CHUNK: tl.constexpr):
    """The id of the `room`-th logit at the cut, or of the last one."""
    last = -1
    seen = 0
    for start in range(0, vocab, CHUNK):
        ids = start + tl.arange(0, CHUNK)
        _, key = _load(logits, ids, vocab, IDLE)
        equal = (key == cut).to(tl.int32)
        number = seen + tl.cumsum(equal, axis=0)
        last = tl.maximum(last, tl.max(tl.where((equal > 0) & (number <= room), ids, -1), axis=0))
        seen += tl.sum(equal, axis=0)
    return last


@triton.jit
def _bound(
    logits,
    samples,
    rows,
    temperatures,
    top_ks,
    top_ps,
    min_ps,
    counts,
    lowest_out,
    last_out,
    vocab: tl.constexpr,
    IDLE: tl.constexpr,
    CHUNK: tl.constexpr,
):
    s = tl.program_id(0)
    if s >= tl.load(counts + 3):
        return
    row = tl.load(rows + tl.load(samples + s))
    temperature = tl.load(temperatures + row)
    top_k, top_p, min_p = tl.load(top_ks + row), tl.load(top_ps + row), tl.load(min_ps + row)
    by_k, by_p = (top_k > 0) & (top_k < vocab), top_p < 1.0
    lowest, last = float("-inf"), LAST_ID
    if (temperature > 0.0) & (by_k | by_p | (min_p > 0.0)):
        logits += s.to(tl.int64) * vocab
        top, top_key = _highest(logits, vocab, IDLE, CHUNK)
        if tl.abs(top) == float("inf"):  # of no use: it keeps everything
            by_k, by_p, min_p = by_k & False, by_p & False, 0.0
        rate = LOG2_E / tl.maximum(temperature, COLDEST)
        room = LAST_ID  # for equals of the lowest
        low = tl.full((), -0x80000000 >> IDLE, tl.int64)  # which all logits reach
        high = top_key.to(tl.int64) + 1  # which none does
        if by_k:
            above = 0  # of top_k, those that reach high
            while high - low > 1:
                quarter = (high - low + 3) >> 2
                a, b, c = _counts_from(logits, low, quarter, vocab, IDLE, CHUNK)
                low, high, above = _narrowed(low, high, above, quarter, top_k, a, b, c)
            room = top_k - above
        if by_p:
            edge = _value(low, IDLE)
            start = low  # of what the total is taken
            if by_k:
                start = high
            total, _, _ = _masses_from(logits, start, 0, top, rate, vocab, IDLE, CHUNK)
            if by_k:
                total += room * tl.exp2((edge - top) * rate)
            wanted = top_p * total
            cut, high, above_mass = low, top_key.to(tl.int64) + 1, 0.0  # less than what is wanted reaches high
            while high - cut > 1:
                quarter = (high - cut + 3) >> 2
                a, b, c = _masses_from(logits, cut, quarter, top, rate, vocab, IDLE, CHUNK)
                cut, high, above_mass = _narrowed(cut, high, above_mass, quarter, wanted, a, b, c)
            each = tl.exp2((_value(cut, IDLE) - top) * rate)
            fitting = tl.minimum(tl.maximum(tl.ceil((wanted - above_mass) / each), 1.0), 1e9).to(tl.int32)
            room = tl.where(cut > low, fitting, tl.minimum(room, fitting))
            low = cut
        if by_k | by_p:
            lowest = _value(low, IDLE)
            last = _last_of_equals(logits, low, room, vocab, IDLE, CHUNK)
        if min_p > 0.0:
            least = top + tl.log(min_p) * temperature
            last = tl.where(least > lowest, LAST_ID, last)
            lowest = tl.maximum(lowest, least)
    tl.store(lowest_out + s, lowest)
    tl.store(last_out + s, last)


def find_bounds(
    logits: Tensor,
    samples: Tensor,
    rows: Tensor,
    temperatures: Tensor,
    filters: Filters,
    counts: Tensor,
    out: Bounds,
) -> None:
    """For each sample. Rows without filters, and greedy ones, keep all. Skips padding.

    logits: [samples, vocab]; samples, rows, counts: int32 as in engine/cuda/step.py; temperatures: [rows] float32.
    """
    num_samples, vocab = logits.shape
    _bound[(num_samples,)](
        logits,
        samples,
        rows,
        temperatures,
        filters.top_k,
        filters.top_p,
        filters.min_p,
        counts,
        out.lowest,
        out.last,
        vocab,
        IDLE_BITS[logits.dtype],
        min(CHUNK, triton.next_power_of_2(vocab)),
        num_warps=NUM_WARPS,
    )
