"""Token ids to hidden states, where an id may be the one that was sampled last in a row.

program t:   ids[t] >= 0 ? ids[t] : last_tokens[rows[t]]   ->   table[id - first, :] -> out[t, :]

Ids that the table does not have, for another rank has them, become zeros.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _embed(ids, rows, last_tokens, table, out, first, count, hidden: tl.constexpr, BLOCK: tl.constexpr):
    t = tl.program_id(0).to(tl.int64)
    token = tl.load(ids + t).to(tl.int64)
    if token < 0:
        token = tl.load(last_tokens + tl.load(rows + t))
    place = token - first
    column = tl.arange(0, BLOCK)
    inside = column < hidden
    here = inside & (place >= 0) & (place < count)
    tl.store(out + t * hidden + column, tl.load(table + place * hidden + column, mask=here, other=0.0), mask=inside)


def embed(ids: Tensor, rows: Tensor, last_tokens: Tensor, table: Tensor, out: Tensor, first: int = 0) -> None:
    """ids, rows: [tokens] int32; last_tokens: [rows] int64; table: [ids, hidden], from `first` on; out: [tokens,
    hidden]."""
    hidden = table.shape[1]
    block = triton.next_power_of_2(hidden)
    _embed[(len(ids),)](ids, rows, last_tokens, table, out, first, len(table), hidden, block, num_warps=4)
